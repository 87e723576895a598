// Loads the page's own module. Nothing else is fetched before the click on Start.
import init from "./web.js";

init().catch((error) => {
  const detail = document.getElementById("detail");
  if (detail) detail.textContent = "This page could not start: " + error.message;
});
