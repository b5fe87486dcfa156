// A trial that runs: how far it is, without loading the page again.
"use strict";
const progress = document.querySelector("[data-progress]");
const EVERY = 2000;
async function look() {
  try {
    const response = await fetch(location.href);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const found = page.querySelector("[data-progress]");
    if (found === null) {
      location.reload();
      return;
    }
    progress.textContent = found.textContent;
  } catch {
    // The service may be starting again.
  }
  setTimeout(look, EVERY);
}
if (progress !== null) { setTimeout(look, EVERY); }
