// From a file path a browser lets no script read another page, so the search page lists its
// results without the lines around each hit; served over http it shows them.
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";

// The theme reports an error when no mode is set. (Set in _config.yml instead, "auto" would leave
// the page without colours where scripts are off.)
document.documentElement.dataset.mode ||= "auto";

// Paper is white, whatever the screen.
{
  const settings = document.documentElement.dataset;
  let onScreen;
  addEventListener("beforeprint", () => {
    onScreen = settings.theme;
    settings.theme = "light";
  });
  addEventListener("afterprint", () => {
    settings.theme = onScreen;
  });
}

// What is wider than its column scrolls, and says so: a slider's pictures, code, tables, formulas. A
// displayed formula moves inside of its own box, which MathJax may make later. (A pixel may be
// rounding.) The keyboard can reach a table only if it takes the focus; code has it from the theme.
addEventListener("load", () => {
  const watch = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      const inner = target.querySelector(":scope > mjx-container[display]");
      const box = target.matches("table") ? target.parentElement : (inner ?? target);
      const beyond = box.scrollWidth - box.clientWidth;
      box.toggleAttribute("data-wide", beyond > 2);
      if (!box.matches(".pst-scrollable-table-container")) continue;
      if (beyond > 0) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  });
  const tables = ".pst-scrollable-table-container, .pst-scrollable-table-container > table";
  const boxes = `.frame-slider, .bd-article :is(.math, pre), ${tables}`;
  for (const box of document.querySelectorAll(boxes)) watch.observe(box);
});
