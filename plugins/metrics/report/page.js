// Draws the charts of the report from the numbers in the page, in the colours of the page's style sheet.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("numbers").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const touch = matchMedia("(pointer: coarse)");

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // plotly.js reads some markup in text: names of hosts and numbers are shown as they are.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const config = { displayModeBar: false, responsive: true, showTips: false };

  // Restarts and changes of the world size, as lines across a chart whose x axis is the step.
  const marks = () => ({
    shapes: data.marks.map((mark) => ({
      type: "line", x0: mark.step, x1: mark.step, y0: 0, y1: 1, yref: "paper",
      line: { color: colour("quiet"), width: 1, dash: "dot" },
    })),
    annotations: data.marks.map((mark) => ({
      x: mark.step, y: 1, yref: "paper", yanchor: "bottom", showarrow: false,
      text: plain(mark.label), hovertext: plain(mark.text), font: { size: 11, color: colour("quiet") },
    })),
  });

  const axis = (more) => ({
    gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"),
    tickfont: { color: colour("quiet"), size: 11 }, automargin: true, fixedrange: touch.matches, ...more,
  });
  const titled = (text) => ({ text, font: { color: colour("quiet"), size: 12 }, standoff: 6 });

  const layout = (more) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "x unified",
    font: { family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", color: colour("ink") },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12 } },
    margin: { l: 8, r: 8, t: 22, b: 8 }, dragmode: touch.matches ? false : "zoom",
    legend: { orientation: "h", x: 0, y: -0.22, yanchor: "top", font: { size: 12 } }, ...more,
  });

  const line = (name, points, more) => ({
    type: "scatter", mode: points.step.length > 1 ? "lines" : "markers", name,
    x: points.step, y: points.value, connectgaps: false, line: { color: colour("accent"), width: 2 }, ...more,
  });

  function curve(points, name, more) {
    const format = "%{y:.5~g}";
    const traces = [];
    if (points.high) {
      traces.push(line("highest in a window", { step: points.step, value: points.high }, {
        line: { color: colour("accent"), width: 1 }, opacity: 0.35, hovertemplate: format,
      }));
    }
    traces.push(line(name, points, { hovertemplate: format }));
    const step = { title: titled("step"), range: data.steps };
    return [traces, layout({ ...marks(), showlegend: false, xaxis: axis(step), yaxis: axis(more) })];
  }

  function split() {
    const flat = data.split.workers.length <= 16; // more of them stand side by side
    const workers = data.split.workers.map((rank) => (flat ? `worker ${rank}` : rank));
    const traces = Object.entries(data.split.phases).map(([name, values]) => ({
      type: "bar", orientation: flat ? "h" : "v", name, marker: { color: colour(name), line: { width: 0 } },
      x: flat ? values : workers, y: flat ? workers : values, hovertemplate: flat ? "%{x:.3~f} ms" : "%{y:.3~f} ms",
    }));
    const slow = new Set(data.split.stragglers);
    const names = data.split.workers.map((rank) => {
      const name = flat && !narrow.matches ? `worker ${rank}` : String(rank);
      return slow.has(rank) ? `<span style="color:${colour("alarm")}">▲ ${name}</span>` : name;
    });
    const ranks = flat ? { tickvals: workers, ticktext: names, autorange: "reversed" } : { title: titled("worker") };
    const time = { title: titled("ms a step"), rangemode: "tozero" };
    const notes = flat ? [] : data.split.stragglers.map((rank) => ({
      x: rank, y: 0, yshift: -2, yanchor: "top", text: "▲", showarrow: false, font: { color: colour("alarm"), size: 10 },
    }));
    return [traces, layout({
      barmode: "stack", bargap: flat ? 0.35 : 0, hovermode: flat ? "y unified" : "x unified", annotations: notes,
      xaxis: axis(flat ? time : ranks), yaxis: axis(flat ? ranks : time),
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 }, traceorder: "normal" },
      margin: { l: 8, r: 8, t: 8, b: 8 },
    })];
  }

  function waiting() {
    const many = data.waiting.workers.length > 16;
    const traces = [{
      type: "heatmap", x: data.waiting.edges, y: data.waiting.workers, z: data.waiting.percent, zmin: 0, zmax: data.waiting.most,
      hoverongaps: false, hovertemplate: "worker %{y}, step %{x:.0f}: %{z:.1f} % waiting<extra></extra>",
      colorscale: [[0, colour("heat-none")], [0.5, colour("heat-half")], [1, colour("heat-full")]],
      xgap: 0, ygap: many ? 0 : 2,
      colorbar: {
        orientation: "h", thickness: 8, len: narrow.matches ? 1 : 0.35, x: 0, xanchor: "left", y: 1.02,
        yanchor: "bottom", xpad: 0, ypad: 0, ticksuffix: " %", outlinewidth: 0, tickfont: { color: colour("quiet"), size: 11 }, nticks: 4,
      },
    }];
    if (data.stragglers.step.length) {
      traces.push({
        type: "scatter", mode: "markers", name: "straggler", x: data.stragglers.step, y: data.stragglers.worker,
        text: data.stragglers.text.map(plain), hovertemplate: "%{text}<extra></extra>",
        marker: { color: colour("alarm"), symbol: "square", size: many ? 5 : 9 },
      });
    }
    const ranks = { title: titled("worker"), autorange: "reversed", tickformat: "d" };
    if (data.waiting.workers.length <= 16) ranks.tickvals = data.waiting.workers;
    const { shapes } = marks();
    return [traces, layout({
      shapes, hovermode: "closest", showlegend: false, margin: { l: 8, r: 8, t: 8, b: 8 },
      xaxis: axis({ range: data.steps, showgrid: false, ticks: "" }), yaxis: axis({ ...ranks, showgrid: false, ticks: "" }),
    })];
  }

  const charts = {
    loss: () => curve(data.loss, "loss"),
    speed: () => curve(data.speed, `${data.speed.unit} a second`, { rangemode: "tozero" }),
    split,
    waiting,
  };
  data.logged.forEach((points, place) => {
    charts[`logged-${place}`] = () => curve(points, plain(points.name));
  });

  // Tall enough for a bar or a row of each worker, up to a limit.
  const height = (name) => {
    if (name === "split" && data.split.workers.length <= 16) return 130 + 34 * data.split.workers.length;
    if (name === "waiting") return Math.min(620, Math.max(240, 130 + 24 * data.waiting.workers.length));
    return name.startsWith("logged") ? 220 : 300;
  };

  async function draw() {
    let drawn = 0;
    for (const [name, make] of Object.entries(charts)) {
      const element = document.getElementById(name);
      if (element) {
        const [traces, made] = make();
        await Plotly.react(element, traces, { ...made, height: height(name) }, config);
        drawn += 1;
      }
    }
    document.documentElement.dataset.drawn = drawn;
  }

  // A stretch of steps that was chosen in one chart is shown in the others.
  function follow() {
    const names = Object.keys(charts).filter((name) => name !== "split" && document.getElementById(name));
    let following = false;
    for (const name of names) {
      document.getElementById(name).on("plotly_relayout", async (change) => {
        const chosen = change["xaxis.range[0]"] !== undefined || change["xaxis.range"] || change["xaxis.autorange"];
        if (!chosen || following) return;
        following = true;
        const range = document.getElementById(name).layout.xaxis.range;
        for (const other of names) {
          const whole = change["xaxis.autorange"] ? data.steps : range;
          await Plotly.relayout(document.getElementById(other), { "xaxis.range": [...whole] });
        }
        following = false;
      });
    }
  }

  draw().then(follow);
  for (const query of [dark, narrow]) query.addEventListener("change", draw);
  addEventListener("beforeprint", draw);
})();
