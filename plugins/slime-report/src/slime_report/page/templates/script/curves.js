// All charts, and what they share: the step that is pointed at, the steps that are shown, and the runs that are.

/** Names of the metrics of a chart without what they all begin with, and without the first part, which says only who measured. */
function shortNames(metrics) {
  const parts = metrics.map((metric) => metric.split("/"));
  let same = 1;
  while (parts.every((part) => part.length > same + 1 && part[same] === parts[0][same])) same++;
  return parts.map((part) => part.slice(part.length > same ? same : 0).join("/"));
}

function curves(data) {
  const runs = data.runs.map((run) => ({
    ...run,
    series: new Map(run.series.map((series) => [series.metric, series])),
    shown: true,
  }));
  const several = runs.length > 1;
  const waiting = new Set();
  // An alarm may be about the step that ended the run, which has no numbers.
  const ends = runs.flatMap((run) => [
    ...[...run.series.values()].flatMap(({ x }) => (x.length ? [x[0], x.at(-1)] : [])),
    ...(run.series.size ? run.alarms.map(({ step }) => step) : []),
  ]);
  const view = {
    step: null,
    range: null,
    chosen: 0, // the run that charts show which can show only one
    steps: [Math.min(...ends), Math.max(...ends)],
    /** Steps after which runs were resumed, with the names of these runs. */
    resumed() {
      const names = new Map();
      for (const run of runs.filter(({ shown }) => shown))
        for (const step of run.resumed) names.set(step, [...(names.get(step) ?? []), run.name]);
      return names;
    },
    alarms: (chart) => runs.flatMap((run) => (run.shown ? run.alarms.filter((alarm) => alarm.chart === chart) : [])),
    /** Point at a step, in all charts; null: at none. */
    point(step) {
      if (step === view.step) return;
      view.step = step;
      cancelAnimationFrame(view.frame);
      view.frame = requestAnimationFrame(() => charts.forEach((chart) => chart.point()));
    },
    /** Show only the steps between two. */
    zoom(first, last) {
      const whole = [Math.max(view.steps[0], Math.round(first)), Math.min(view.steps[1], Math.round(last))];
      if (!(whole[0] < whole[1])) return;
      view.range = whole[0] === view.steps[0] && whole[1] === view.steps[1] ? null : whole;
      changed();
    },
    closer(step, factor) {
      const [first, last] = view.range ?? view.steps;
      view.zoom(step - (step - first) * factor, step + (last - step) * factor);
    },
    all() {
      view.range = null;
      view.point(null);
      changed();
    },
    /** Draw a chart when there is time; the page stays usable while many are drawn. */
    drawSoon(chart) {
      if (!waiting.size) setTimeout(drawSome);
      waiting.add(chart);
    },
  };
  const charts = data.charts.map((about) => new Chart(byId(about.element), about, view));

  function drawSome(all = false) {
    const start = performance.now();
    for (const chart of waiting) {
      waiting.delete(chart);
      chart.draw();
      if (!all && performance.now() - start > 12) break;
    }
    if (waiting.size) setTimeout(drawSome);
    else document.documentElement.dataset.ready = "yes";
  }

  /** Each chart's lines: its metrics in each run that is shown. A colour is a run where there are several, else a metric. */
  function takeLines() {
    for (const chart of charts) {
      const names = shortNames(chart.about.metrics);
      const stacked = chart.about.kind === "stacked";
      const of = stacked ? [view.chosen] : runs.map((_, number) => number).filter((number) => runs[number].shown);
      chart.take(
        of.flatMap((number) =>
          chart.about.metrics.flatMap((metric, place) => {
            const series = runs[number].series.get(metric);
            if (!series?.x.length) return [];
            const perRun = several && !stacked;
            return [
              {
                series,
                gap: gapOf(series.x),
                name: perRun
                  ? chart.about.metrics.length > 1
                    ? `${runs[number].name}, ${names[place]}`
                    : runs[number].name
                  : names[place],
                colour: perRun ? `r${number % 6}` : `c${place % 8}`,
                dashes: stacked ? 0 : perRun ? number + Math.floor(number / 6) + place : place, // more runs than colours differ in dashes
              },
            ];
          }),
        ),
      );
    }
  }

  const tools = byId("curve-tools");
  const openOthers = () => byId("other-charts")?.setAttribute("open", "");
  function changed() {
    const [first, last] = view.range ?? view.steps;
    byId("from-step").value = first;
    byId("to-step").value = last;
    byId("all-steps").disabled = view.range === null;
    charts.forEach(view.drawSoon);
  }

  function listen() {
    tools.addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["from-step", "to-step"]) {
      [byId(id).min, byId(id).max] = view.steps;
      byId(id).addEventListener("change", () =>
        view.zoom(Number(byId("from-step").value), Number(byId("to-step").value)),
      );
    }
    byId("all-steps").addEventListener("click", view.all);
    byId("find-chart")?.addEventListener("input", (event) => {
      const wanted = event.target.value.trim().toLowerCase();
      const found = charts.filter((chart) => {
        const matches = `${chart.title} ${chart.about.metrics.join(" ")}`.toLowerCase().includes(wanted);
        chart.figure.hidden = !matches;
        if (matches) view.drawSoon(chart);
        return matches;
      });
      if (wanted) openOthers();
      byId("no-chart").hidden = found.length > 0;
      byId("charts-found").textContent = wanted ? plural(found.length, "chart") : "";
    });
    for (const button of document.querySelectorAll("[data-shows]"))
      button.addEventListener("click", () => {
        const run = runs[Number(button.dataset.shows)];
        run.shown = !run.shown;
        button.setAttribute("aria-pressed", run.shown);
        takeLines();
      });
    const sizes = new ResizeObserver((entries) =>
      entries.forEach(({ target }) => view.drawSoon(charts.find((chart) => chart.plot === target))),
    );
    charts.forEach((chart) => sizes.observe(chart.plot));
    addEventListener("beforeprint", () => {
      openOthers();
      charts.forEach(view.drawSoon);
      drawSome(true);
    });
  }

  if (charts.length && ends.length) {
    takeLines();
    changed();
    listen();
  } else document.documentElement.dataset.ready = "yes";
  return {
    point: view.point,
    /** Let charts that can show only one run show this one. */
    choose(number) {
      view.chosen = number;
      if (charts.length) takeLines();
    },
  };
}
