// Draws the charts and draws them again when the colour scheme changes.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const themed = (value, styles) => {
    if (typeof value === "string" && value.startsWith("--")) return styles.getPropertyValue(value).trim();
    if (Array.isArray(value)) return value.map((item) => themed(item, styles));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, styles)]));
    }
    return value;
  };

  const axis = (own) => ({
    gridcolor: "--grid", linecolor: "--rule", zeroline: false, ticks: "", fixedrange: true, ...own,
    title: { standoff: 12, ...(own || {}).title },
  });

  const layoutOf = (own) => ({
    height: 380,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "--text" },
    margin: { l: 64, r: 16, t: 44, b: 56 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: "--muted" } },
    hoverlabel: { bgcolor: "--surface", bordercolor: "--rule", font: { color: "--text" }, align: "left" },
    showlegend: true,
    ...own,
    xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
  });

  const draw = () => {
    const styles = getComputedStyle(document.documentElement);
    for (const [id, figure] of Object.entries(figures)) {
      Plotly.react(id, themed(figure.data, styles), themed(layoutOf(figure.layout), styles), {
        displayModeBar: false, responsive: true,
      });
    }
  };

  draw();
  dark.addEventListener("change", draw);
})();
