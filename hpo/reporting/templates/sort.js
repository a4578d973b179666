"use strict";
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const column = head.cellIndex;
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const rank = (row) => {
      const cell = row.cells[column];
      const value = cell.dataset.v ?? cell.textContent.trim();
      return value !== "" && isFinite(value) ? Number(value) : value;
    };
    const compare = (one, other) => {
      const [a, b] = [rank(one), rank(other)];
      const [noA, noB] = [a === "–" || a === "", b === "–" || b === ""];
      if (noA || noB) return noA - noB; // what is missing stays below
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return ascending ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
