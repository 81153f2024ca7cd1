"use strict";
/* The clips of one prompt play as one: they start together, and play, pause and seek on one is done to all. */
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const prompts = all(".prompt");
  const DRIFT_S = 0.12;
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;

  const videos = (prompt) => all("video", prompt).filter((video) => !video.closest("[hidden]"));
  const start = (video) => video.play().catch(() => {});  // a browser that forbids autoplay leaves the controls
  const ready = (video) =>
    video.readyState >= 2 || video.error
      ? Promise.resolve()
      : new Promise((done) => ["loadeddata", "error"].forEach((name) => video.addEventListener(name, done, { once: true })));

  async function together(prompt) {
    const group = videos(prompt);
    group.forEach((video) => { video.preload = "auto"; video.pause(); });
    await Promise.all(group.map(ready));
    if (!playing || !prompt.visible) return;
    group.forEach((video) => { video.currentTime = 0; });
    group.forEach(start);
  }

  function follow(prompt, leader) {
    for (const video of videos(prompt)) {
      if (video === leader || !video.duration) continue;
      const gap = Math.abs(video.currentTime - leader.currentTime);
      if (Math.min(gap, Math.abs(video.duration - gap)) > DRIFT_S) video.currentTime = Math.min(leader.currentTime, video.duration);
    }
  }

  for (const prompt of prompts) {
    for (const video of all("video", prompt)) {
      const touched = () => video.matches(":hover, :focus, :focus-within");
      video.addEventListener("play", () => touched() && videos(prompt).forEach(start));
      video.addEventListener("pause", () => touched() && !video.seeking && videos(prompt).forEach((other) => other.pause()));
      video.addEventListener("seeking", () => touched() && video.paused && follow(prompt, video));
      video.addEventListener("timeupdate", () => video === videos(prompt)[0] && !video.paused && follow(prompt, video));
    }
  }

  /* Only what is on screen plays: a report may hold thousands of clips. */
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      target.visible = isIntersecting;
      if (isIntersecting && playing) together(target);
      else videos(target).forEach((video) => video.pause());
    }
  }, { rootMargin: "100px" });
  prompts.forEach((prompt) => watcher.observe(prompt));

  const shown = () => prompts.filter((prompt) => prompt.visible && !prompt.hidden);
  const play = document.getElementById("play");
  const name = () => { play.textContent = playing ? "Pause all" : "Play all"; play.setAttribute("aria-pressed", String(playing)); };
  play.addEventListener("click", () => {
    playing = !playing;
    name();
    shown().forEach((prompt) => videos(prompt).forEach((video) => (playing ? start(video) : video.pause())));
  });
  document.getElementById("restart").addEventListener("click", () => { playing = true; name(); shown().forEach(together); });
  document.getElementById("rate").addEventListener("change", ({ target }) => {
    all("video").forEach((video) => { video.playbackRate = video.defaultPlaybackRate = Number(target.value); });
  });

  const list = document.getElementById("list");
  const count = document.getElementById("shown");
  const tell = () => {
    const number = prompts.filter((prompt) => !prompt.hidden).length;
    count.textContent = number === prompts.length ? `${number} prompts` : `${number} of ${prompts.length} prompts`;
  };
  document.getElementById("sort").addEventListener("change", ({ target }) => {
    const up = target.value === "order" || target.value === "ssim" ? 1 : -1;
    const by = (prompt) => Number(prompt.dataset[target.value]);
    prompts.sort((a, b) => up * (by(a) - by(b)) || a.dataset.order - b.dataset.order).forEach((prompt) => list.append(prompt));
  });
  document.getElementById("find").addEventListener("input", ({ target }) => {
    const words = target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const prompt of prompts) {
      const text = prompt.textContent.toLowerCase();
      prompt.hidden = !words.every((word) => text.includes(word));
    }
    tell();
  });
  all("input.arm").forEach((box) => box.addEventListener("change", () => {
    all(".clip").filter((clip) => clip.dataset.arm === box.value).forEach((clip) => {
      clip.hidden = !box.checked;
      if (!box.checked) all("video", clip).forEach((video) => video.pause());
    });
    shown().forEach((prompt) => playing && together(prompt));
  }));

  name();
  tell();
  if (!playing) all("video").forEach((video) => { video.autoplay = false; video.pause(); });
})();
