// The live feed: new rows on top of the table, as the server renders them.
"use strict";
const rows = document.querySelector("tbody[data-feed]");
const state = document.querySelector("[data-state]");
const MOST = 200;
if (rows !== null && state !== null) {
  const source = new EventSource(rows.dataset.feed);
  source.onopen = () => { state.textContent = "Connected: new messages appear on top."; };
  source.onerror = () => { state.textContent = "Not connected; trying again."; };
  source.onmessage = (event) => {
    rows.insertAdjacentHTML("afterbegin", event.data);
    while (rows.rows.length > MOST) { rows.deleteRow(-1); }
  };
}
