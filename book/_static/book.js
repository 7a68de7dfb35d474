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

// A table wider than its column scrolls; the keyboard can reach it only if it takes the focus.
addEventListener("load", () => {
  const watch = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      const box = target.closest(".pst-scrollable-table-container");
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  });
  for (const table of document.querySelectorAll(".pst-scrollable-table-container > table")) {
    watch.observe(table);
    watch.observe(table.parentElement);
  }
});

// What is wider than a phone says so: a slider's pictures, code, tables, formulas. A displayed
// formula moves inside of its own box, which MathJax may make later. (A pixel may be rounding.)
addEventListener("load", () => {
  const watch = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      const box = target.querySelector(":scope > mjx-container[display]") ?? target;
      box.toggleAttribute("data-wide", box.scrollWidth > box.clientWidth + 2);
    }
  });
  const boxes = ".frame-slider, .bd-article :is(.math, pre, .pst-scrollable-table-container)";
  for (const box of document.querySelectorAll(boxes)) watch.observe(box);
});
