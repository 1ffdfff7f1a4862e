// How a chart follows the pointer and the keys.

/** Follow the pointer and the keys. */
function follow(chart) {
  let from = null; // where a drag began
  const stepAt = (event) => chart.x.back(event.clientX - chart.plot.getBoundingClientRect().left);
  const nearestStep = (event) => chart.steps[nearest(chart.steps, stepAt(event))];
  chart.plot.addEventListener("pointermove", (event) => {
    if (!chart.x || !chart.steps.length) return;
    chart.view.point(nearestStep(event));
    chart.selection?.remove();
    if (from === null || Math.abs(event.clientX - from.x) < 6) return;
    const [a, b] = [chart.x(from.step), chart.x(stepAt(event))].sort((one, other) => one - other);
    chart.selection = drawn("rect", {
      x: a,
      width: b - a,
      y: MARGIN.top,
      height: chart.plot.clientHeight - MARGIN.top - MARGIN.bottom,
      class: "selection",
    });
    chart.picture.append(chart.selection);
  });
  chart.plot.addEventListener("pointerdown", (event) => {
    if (!chart.x || !chart.steps.length) return;
    if (event.pointerType !== "mouse") return chart.view.point(nearestStep(event)); // a finger points; a mouse may drag, too
    if (event.button !== 0) return;
    from = { x: event.clientX, step: stepAt(event) };
    chart.plot.setPointerCapture(event.pointerId);
  });
  chart.plot.addEventListener("pointerup", (event) => {
    chart.selection?.remove();
    if (from !== null && Math.abs(event.clientX - from.x) >= 6)
      chart.view.zoom(...[from.step, stepAt(event)].sort((a, b) => a - b));
    from = null;
  });
  chart.plot.addEventListener(
    "pointerleave",
    (event) => from === null && event.pointerType === "mouse" && chart.view.point(null),
  );
  chart.plot.addEventListener("keydown", (event) => followKey(chart, event));
}

/** Go from step to step, to the ends, and closer. */
function followKey(chart, event) {
  const shown = chart.steps.filter((step) => chart.within(step, ...chart.range));
  if (!shown.length || event.ctrlKey || event.altKey || event.metaKey) return;
  const last = shown.length - 1;
  const now = chart.view.step === null ? last : nearest(shown, chart.view.step);
  const far = Math.max(1, Math.round(shown.length / 10));
  const to = {
    ArrowLeft: now - 1,
    ArrowDown: now - 1,
    ArrowRight: now + 1,
    ArrowUp: now + 1,
    PageDown: now - far,
    PageUp: now + far,
    Home: 0,
    End: last,
  }[event.key];
  if (to !== undefined) chart.view.point(shown[Math.min(last, Math.max(0, to))]);
  else if (event.key === "Escape") chart.view.all();
  else if (event.key === "+" || event.key === "-") chart.view.closer(shown[now], event.key === "+" ? 0.5 : 2);
  else return;
  event.preventDefault();
}
