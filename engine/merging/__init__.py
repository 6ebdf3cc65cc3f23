"""Merge a LoRA or DoRA checkpoint into a model's checkpoint from disk to disk, without loading either.

``weight_file`` (the safetensors format), ``base_folder`` and ``adapter_folder`` read what is there and import no torch;
``placement`` knows which checkpoint tensor becomes which parameter, ``plan`` what is done to each, ``arithmetic`` how,
``output_folder`` what is on disk at every moment, and ``running`` does it.
"""
