// Sorting by column and filtering by words, for every table marked "sortable".
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1; // undefined comes last
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  for (const head of table.tHead.querySelectorAll("th")) {
    head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const column = head.cellIndex;
      const rows = [...body.rows].sort((r, s) => {
        const [a, b] = [value(r, column), value(s, column)];
        return a === "" || b === "" || !down ? compare(a, b) : compare(b, a);
      });
      body.append(...rows);
    });
  }
  const box = document.querySelector(`input[data-filters="${table.id}"]`);
  const count = document.querySelector(`output[for="${table.id}"]`);
  box?.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      const words = [...row.querySelectorAll("th, td.text")].map((cell) => cell.textContent);
      row.hidden = !words.join(" ").toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    if (count) count.textContent = `${shown} of ${body.rows.length} shown`;
  });
}
// A table that scrolls can be reached and moved by the keyboard.
for (const box of document.querySelectorAll(".scroll")) {
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", box.querySelector("caption")?.textContent.split(/[.:]/)[0] ?? "");
}
// Paper has no way to open what is folded.
const folded = () => document.querySelectorAll("details:not([open])");
addEventListener("beforeprint", () => {
  for (const part of folded()) part.open = part.dataset.folded = true;
});
addEventListener("afterprint", () => {
  for (const part of document.querySelectorAll("details[data-folded]")) {
    part.open = false;
    delete part.dataset.folded;
  }
});
