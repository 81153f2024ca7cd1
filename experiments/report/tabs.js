"use strict";
/* What the parts of the page share. */
const report = {
  all: (selector, root = document) => [...root.querySelectorAll(selector)],
  shown: new EventTarget(),  // "panel" when a tab is turned to
  panel: "",
};

/* One part of the report at a time; the address names it, so that it can be linked to and gone back to. */
(() => {
  const tabs = report.all('[role="tab"]');
  const names = tabs.map((tab) => tab.getAttribute("aria-controls"));

  function show(name) {
    report.panel = names.includes(name) ? name : names[0];
    tabs.forEach((tab, index) => {
      const chosen = names[index] === report.panel;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      document.getElementById(names[index]).classList.toggle("off", !chosen);
    });
    report.shown.dispatchEvent(new Event("panel"));
  }

  function turnTo(name, keepsPlace = false) {
    if (name === report.panel) return;
    history.pushState(null, "", `#${name}`);
    show(name);
    const bar = document.querySelector(".tabs");
    const top = bar.parentElement.querySelector("main").offsetTop - bar.offsetHeight;
    if (!keepsPlace && scrollY > top) scrollTo({ top, behavior: "instant" });
  }

  report.turnTo = turnTo;
  tabs.forEach((tab, index) => {
    tab.addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!step) return;
      const next = tabs[(index + step + tabs.length) % tabs.length];
      turnTo(next.getAttribute("aria-controls"), true);
      next.focus();
    });
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    const name = link && link.getAttribute("href").slice(1);
    if (!names.includes(name)) return;
    event.preventDefault();
    turnTo(name);
  });
  addEventListener("popstate", () => show(location.hash.slice(1)));
  show(location.hash.slice(1));

  /* Several charts in one place, one kind of them at a time. */
  const choices = report.all(".choice");
  const choose = (chosen) => choices.forEach((choice) => {
    choice.setAttribute("aria-pressed", String(choice === chosen));
    document.getElementById(choice.dataset.shows).classList.toggle("off", choice !== chosen);
  });
  choices.forEach((choice) => choice.addEventListener("click", () => choose(choice)));
  if (choices.length) choose(choices[0]);
})();
