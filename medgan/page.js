const byId = (id) => document.getElementById(id);

// Plotly's own bar would offer to send a curve, and the data in it, to a service of its maker.
const bar = { displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d"], displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false };

function draw() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink"), line = style.getPropertyValue("--line");
  curves.forEach((figure, index) => {
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
    const layout = { ...figure.layout, paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { color: ink, size: 12 },
      colorway: ["#1b87ab", "#e07b39", "#3d9970", "#b0529e", "#8c7a2b", "#5b6ee1"],
      hoverlabel: { namelength: -1, bgcolor: style.getPropertyValue("--panel"), font: { color: ink } } };
    layout.xaxis = { ...figure.layout.xaxis, ...axis };
    layout.yaxis = { ...figure.layout.yaxis, ...axis };
    Plotly.react(byId("curve" + index), figure.data, layout, { responsive: true, ...bar });
  });
}

function theme(name) { document.documentElement.dataset.theme = name; draw(); }
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
theme(dark.matches ? "dark" : "light");
