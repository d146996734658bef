// Renders the formulas that pymdownx.arithmatex marks, on each page that is opened.
(function () {
  function render() {
    document.querySelectorAll(".arithmatex").forEach(function (node) {
      if (node.querySelector(".katex")) return;
      var text = node.textContent.trim();
      var display = text.startsWith("\\[");
      katex.render(text.slice(2, -2), node, { displayMode: display, throwOnError: true });
    });
  }
  if (window.document$) window.document$.subscribe(render);
  else document.addEventListener("DOMContentLoaded", render);
})();
