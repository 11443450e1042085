// Values of figures: without this script a browser shows their titles after a while, and not on a touch screen.
const tip = document.body.appendChild(document.createElement("output"));
tip.className = "tip";
tip.hidden = true;
addEventListener("pointerover", ({ target }) => {
  const mark = target instanceof Element ? target.closest(".values use") : null;
  const title = mark && mark.querySelector("title");
  if (title) {
    mark.dataset.value = title.textContent;
    title.remove();
  }
  tip.hidden = !mark || !mark.dataset.value;
  if (tip.hidden) return;
  tip.textContent = mark.dataset.value;
  const { left, top, bottom } = mark.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${top > tip.offsetHeight + 8 ? top - tip.offsetHeight - 4 : bottom + 4}px`;
});
addEventListener("scroll", () => { tip.hidden = true; }, true);

// The filters of the page of samples.
const filters = document.querySelector("form.filters");
function filter() {
  const { outcome, task } = filters.elements;
  let count = 0;
  for (const section of document.querySelectorAll("main section")) {
    let here = 0;
    for (const problem of section.querySelectorAll("article")) {
      problem.hidden = !problem.matches(outcome.value) || (task.value !== "" && task.value !== section.id);
      here += !problem.hidden;
    }
    section.hidden = here === 0;
    count += here;
  }
  filters.querySelector("output").textContent = `${count} shown`;
}
if (filters) {
  filters.hidden = false;
  filters.addEventListener("change", filter);
  filter();
}
