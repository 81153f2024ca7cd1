/* The clips of one prompt play as one: they start together, and play, pause and seek on one is done to all. */
(() => {
  const { all } = report;
  const DRIFT_S = 0.12;
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let rate = 1;

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

  /* Only what is on screen plays. */
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      target.visible = isIntersecting;
      if (isIntersecting && playing) together(target);
      else videos(target).forEach((video) => video.pause());
    }
  }, { rootMargin: "100px" });

  function adopt(prompt) {
    for (const video of all("video", prompt)) {
      const touched = () => video.matches(":hover, :focus, :focus-within");
      video.playbackRate = video.defaultPlaybackRate = rate;
      if (!playing) { video.autoplay = false; video.pause(); }
      video.addEventListener("play", () => touched() && videos(prompt).forEach(start));
      video.addEventListener("pause", () => touched() && !video.seeking && videos(prompt).forEach((other) => other.pause()));
      video.addEventListener("seeking", () => touched() && video.paused && follow(prompt, video));
      video.addEventListener("timeupdate", () => video === videos(prompt)[0] && !video.paused && follow(prompt, video));
    }
  }

  const onScreen = () => all(".prompt").filter((prompt) => prompt.visible);
  report.watch = (prompt) => watcher.observe(prompt);
  report.leave = (prompt) => {
    watcher.unobserve(prompt);
    prompt.visible = false;
    all("video", prompt).forEach((video) => video.pause());
  };
  report.adopt = adopt;
  report.rejoin = () => onScreen().forEach((prompt) => playing && together(prompt));

  const play = document.getElementById("play");
  const name = () => { play.textContent = playing ? "Pause all" : "Play all"; play.setAttribute("aria-pressed", String(playing)); };
  play.addEventListener("click", () => {
    playing = !playing;
    name();
    onScreen().forEach((prompt) => videos(prompt).forEach((video) => (playing ? start(video) : video.pause())));
  });
  document.getElementById("restart").addEventListener("click", () => { playing = true; name(); onScreen().forEach(together); });
  document.getElementById("rate").addEventListener("change", ({ target }) => {
    rate = Number(target.value);
    all("video").forEach((video) => { video.playbackRate = video.defaultPlaybackRate = rate; });
  });
  name();
})();
