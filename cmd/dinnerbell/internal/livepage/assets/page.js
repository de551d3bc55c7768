// Keeps the page current from /live/events and draws the charts. Without it the page is
// complete, as of the moment at which it was loaded.
"use strict";
(() => {
  const reconnectAfter = 2000; // milliseconds
  const silentAfter = 6000; // an event comes each second: after this the figures are stale
  const connection = document.getElementById("connection");
  const lost = document.getElementById("lost");
  const sections = new Map();
  for (const s of document.querySelectorAll("[data-section]")) sections.set(s.dataset.section, s);
  let version = document.body.dataset.version;
  let heard = Date.now();
  let stale = false;
  let polling = false;
  let events = null; // the stream
  let opened = 0; // when it was opened last

  // replaceSection puts new HTML into a section. The server has escaped it. A section in
  // which the reader has selected text, to copy it, waits for the next change.
  function replaceSection(name, html) {
    const section = sections.get(name);
    if (!section || section.innerHTML === html) return;
    const selection = document.getSelection();
    if (selection && !selection.isCollapsed && section.contains(selection.anchorNode)) return;
    section.innerHTML = html;
    if (name === "head") {
      const state = section.querySelector("strong");
      if (state) document.title = state.textContent + " – dinnerbell";
    }
  }

  function noteHeard(now) {
    heard = Date.now();
    if (now !== version) location.reload(); // another daemon has other scripts
    connection.textContent = polling ? "every few seconds" : "live";
    connection.className = "connection live";
    if (!stale) return;
    stale = false;
    lost.hidden = true;
    lost.textContent = "";
    document.body.classList.remove("stale");
  }

  function noteSilence() {
    if (stale || Date.now() - heard < silentAfter) return;
    stale = true;
    const at = new Date(heard).toISOString().slice(11, 19);
    lost.textContent = "■ No answer from the daemon since " + at + " UTC. The figures below are those of then. If it does not come back: dinnerbell status, and the daemon’s log.";
    lost.hidden = false;
    connection.textContent = "connecting again";
    connection.className = "connection";
    document.title = "No answer – dinnerbell";
    document.body.classList.add("stale");
  }
  setInterval(() => { noteSilence(); replaceSilentStream(); }, 1000);

  // The stream. A browser gives up on an answer that is no stream (the daemon has too many,
  // or a proxy answers for it); then the page is asked for instead, until a stream works.
  function openStream() {
    events?.close();
    const stream = new EventSource("/live/events");
    events = stream;
    opened = Date.now();
    stream.addEventListener("page", (e) => {
      const page = JSON.parse(e.data);
      polling = false;
      noteHeard(page.version);
      for (const [name, html] of Object.entries(page.sections)) replaceSection(name, html);
      document.body.dataset.live = "yes";
    });
    stream.addEventListener("samples", (e) => addSamples(JSON.parse(e.data)));
    stream.onerror = () => {
      if (stream !== events || stream.readyState !== EventSource.CLOSED) return; // it connects again by itself
      stream.close();
      pollPage().finally(() => setTimeout(openStream, reconnectAfter));
    };
  }

  // replaceSilentStream opens a new stream in the place of a silent one. A browser does not
  // notice that the other end is gone without a word (a machine without power, a changed
  // network), and it may end a stream without an event.
  function replaceSilentStream() {
    if (Date.now() - Math.max(heard, opened) >= silentAfter) openStream();
  }

  async function pollPage() {
    try {
      const answer = await fetch("/", { cache: "no-store" });
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      polling = true;
      noteHeard(page.body.dataset.version);
      for (const s of page.querySelectorAll("[data-section]")) replaceSection(s.dataset.section, s.innerHTML);
    } catch {
      // the daemon is away: noteSilence says so
    }
  }

  // The charts.
  const data = { at: [], decided: [], shipped: [], median: [], slowest: [] };
  let span = 900;
  let charts = [];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function addSamples(more) {
    span = more.window;
    for (const key of Object.keys(data)) data[key] = more.all ? more[key] : data[key].concat(more[key]).slice(-span);
    if (charts.length === 0) makeCharts();
    drawCharts();
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  const thousands = (x) => x.toLocaleString("en-US", { maximumFractionDigits: x < 10 ? 1 : 0 });
  function duration(ms) {
    if (ms < 1000) return Math.round(ms) + " ms";
    if (ms < 60000) return (ms / 1000).toLocaleString("en-US", { maximumFractionDigits: 1 }) + " s";
    return Math.round(ms / 60000) + " min";
  }
  const clock = (at, seconds) => new Date(at * 1000).toISOString().slice(11, seconds ? 19 : 16);

  // timeRange is the last fifteen minutes; of a young daemon, the time since its start.
  function timeRange() {
    const end = data.at.at(-1) ?? 0;
    return [Math.max(end - span, Math.min(data.at[0] ?? end, end - 60)), end];
  }

  function makeChart(id, series, write, least) {
    const box = document.getElementById(id);
    const axis = { stroke: colour("--dim"), font: "12px system-ui, sans-serif", grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false } };
    const chart = new uPlot({
      width: box.clientWidth, height: box.clientHeight, pxAlign: 0,
      padding: [8, 22, 0, 0], legend: { show: false }, cursor: { y: false, drag: { setScale: false, x: false, y: false } },
      scales: { x: { time: false, range: timeRange }, y: { range: (_, __, most) => [0, Math.max(least, (most ?? 0) * 1.15)] } },
      axes: [
        { ...axis, size: 24, space: 90, incrs: [10, 30, 60, 180, 300], values: (_, all, __, ___, step) => all.map((at) => clock(at, step < 60)) },
        { ...axis, size: 58, space: 34, values: (_, all) => all.map((x) => write(x)) },
      ],
      series: [{}, ...series],
    }, [[], [], []], box);
    return { chart, box };
  }

  function makeCharts() {
    document.getElementById("charts").hidden = false;
    for (const c of charts) c.chart.destroy();
    const points = { show: false };
    charts = [
      makeChart("rate", [
        { stroke: colour("--c2"), width: 1.5, points },
        { stroke: colour("--c1"), fill: colour("--c1-fill"), width: 2, points },
      ], thousands, 10),
      makeChart("latency", [
        { stroke: colour("--c4"), fill: colour("--c4"), width: 0, points: { show: true, size: 5, width: 0, fill: colour("--c4") }, paths: () => null },
        { stroke: colour("--c3"), fill: colour("--c3"), width: 0, points: { show: true, size: 5, width: 0, fill: colour("--c3") }, paths: () => null },
      ], duration, 50),
    ];
  }

  function drawCharts() {
    if (document.hidden) return;
    charts[0].chart.setData([data.at, data.decided, data.shipped]);
    charts[1].chart.setData([data.at, data.slowest, data.median]);
  }

  dark.addEventListener("change", () => { if (charts.length) { makeCharts(); drawCharts(); } });
  addEventListener("resize", () => { for (const c of charts) c.chart.setSize({ width: c.box.clientWidth, height: c.box.clientHeight }); });
  document.addEventListener("visibilitychange", () => { if (charts.length) drawCharts(); });

  connection.textContent = "connecting";
  openStream();
})();
