// Draws every chart of the report in the colours of the reader's scheme, and in light ones on paper.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colours = (isDark) =>
    isDark
      ? { text: "#e4e9ee", grid: "#303b46", line: "#8a97a3", hover: "#1c242d" }
      : { text: "#1c2733", grid: "#dde3e9", line: "#6b7885", hover: "#ffffff" };
  const template = (isDark) => {
    const colour = colours(isDark);
    const axis = { gridcolor: colour.grid, linecolor: colour.line, zerolinecolor: colour.grid, automargin: true };
    return {
      layout: {
        colorway: PALETTE,
        font: { color: colour.text, family: "system-ui, sans-serif", size: 13 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        hoverlabel: { bgcolor: colour.hover, font: { color: colour.text }, align: "left" },
        xaxis: axis,
        yaxis: axis,
      },
    };
  };
  // A4 and US Letter with usual margins hold this many pixels; the screen's width would be cut off there.
  const PAPER_WIDTH_PX = 680;
  const draw = (isDark, width) => {
    for (const place of document.querySelectorAll("[data-chart]")) {
      const figure = JSON.parse(document.getElementById(place.dataset.chart).textContent);
      const layout = { ...figure.layout, template: template(isDark), autosize: !width, width };
      window.Plotly.react(place, figure.data, layout, { responsive: !width, displaylogo: false });
    }
  };
  draw(dark.matches);
  dark.addEventListener("change", () => draw(dark.matches));
  window.addEventListener("beforeprint", () => draw(false, PAPER_WIDTH_PX));
  window.addEventListener("afterprint", () => draw(dark.matches));
})();
