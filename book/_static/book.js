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
