// Puts the page together: theme, links, the run that the lower sections are about, and the search of arguments.

const data = JSON.parse(byId("curve-data").textContent);
const charts = curves(data);
const browser = browserOfSamples(byId("browser"));
let chosen = null;

/** The browser of samples; null where there is none to show, or no way to unpack it. */
function browserOfSamples(place) {
  if (place.hidden) return null;
  if (window.DecompressionStream) return new Browser(place);
  place.append(
    element("p", { class: "nothing" }, "This browser is too old to unpack the samples; one of 2023 or later can."),
  );
  return null;
}

/** The theme is kept where the browser allows it. */
function theme() {
  const select = byId("theme");
  const kept = (work) => {
    try {
      return work(localStorage);
    } catch {
      return null; // a browser may refuse storage to files
    }
  };
  const set = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
  };
  select.value = kept((storage) => storage.getItem("slime-report-theme")) ?? "";
  set(select.value);
  select.addEventListener("change", () => {
    set(select.value);
    kept((storage) => storage.setItem("slime-report-theme", select.value));
  });
}

/** Let the sections that show one run show this one. */
async function choose(run) {
  if (run === chosen) return;
  chosen = run;
  for (const part of document.querySelectorAll("[data-run]")) part.hidden = Number(part.dataset.run) !== run;
  for (const input of document.querySelectorAll("input[name=run]")) input.checked = Number(input.value) === run;
  charts.choose(run);
  if (browser) await browser.take(run);
}

/** Go where the address leads: a sample is not on the page before it is chosen. */
async function goWhereTheAddressLeads() {
  const found = /^#sample-(\d+)-(\d+)$/.exec(location.hash);
  if (!found || !browser) return;
  await choose(Number(found[1]));
  await browser.go(Number(found[2]));
}

function links() {
  addEventListener("hashchange", goWhereTheAddressLeads);
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (!link) return;
    const { step, prompt } = link.dataset;
    if (step !== undefined) charts.point(Number(step));
    if (prompt !== undefined) browser?.only(prompt).then(() => browser.list.pick(0));
    if (link.getAttribute("href") === location.hash) goWhereTheAddressLeads();
    const target = byId(link.getAttribute("href").slice(1));
    target?.closest("details")?.setAttribute("open", "");
    target?.querySelector("[role=slider]")?.focus({ preventScroll: true });
  });
}

/** Find arguments by any of their words; at first only those that were set. */
function findArguments() {
  for (const form of document.querySelectorAll(".find-arguments")) {
    const [search, only] = form.querySelectorAll("input");
    const rows = [...form.parentElement.querySelectorAll(".arguments tbody tr")];
    const find = () => {
      const wanted = search.value.trim().toLowerCase();
      let found = 0;
      for (const row of rows) {
        row.hidden =
          (only.checked && row.classList.contains("default")) || !row.textContent.toLowerCase().includes(wanted);
        found += !row.hidden;
      }
      form.querySelector("output").textContent = `${words(found)} of ${words(rows.length)}`;
    };
    if (rows.every((row) => row.classList.contains("default"))) only.checked = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", find);
    form.hidden = false;
    find();
  }
}

/** Load the page of a run that goes on again and again, if that is wanted. */
function again() {
  const boxes = [...document.querySelectorAll("[data-again]")];
  const wanted = (value) => {
    try {
      if (value !== undefined) sessionStorage.setItem("slime-report-again", value);
      return sessionStorage.getItem("slime-report-again") === "true";
    } catch {
      return false; // a browser may refuse storage to files
    }
  };
  for (const box of boxes) {
    box.checked = wanted();
    box.addEventListener("change", () => wanted(box.checked));
  }
  if (boxes.length) setInterval(() => boxes.some((box) => box.checked) && location.reload(), 30000);
}

theme();
again();
links();
findArguments();
for (const input of document.querySelectorAll("input[name=run]"))
  input.addEventListener("change", () => choose(Number(input.value)));
setTimeout(async () => {
  await choose(0);
  await goWhereTheAddressLeads();
  document.documentElement.dataset.samples = "yes";
});
