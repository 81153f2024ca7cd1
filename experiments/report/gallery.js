/* Prompts chosen, sorted, and put into the page so many at a time: a run may have thousands, most of them only as data. */
(() => {
  const { all } = report;
  const element = (id) => document.getElementById(id);
  const list = element("list");
  const data = element("prompts-data");
  if (!data) return;
  const { perPage, prompts } = JSON.parse(data.textContent);
  all(".prompt", list).forEach((article, index) => { prompts[index].article = article; report.adopt(article); });

  const hidden = new Set();  // arms
  let chosen = prompts;
  let page = 0;

  function articleOf(prompt) {
    if (!prompt.article) {
      const template = document.createElement("template");
      template.innerHTML = prompt.html;
      prompt.article = document.importNode(template.content, true).firstElementChild;
      delete prompt.html;
      report.adopt(prompt.article);
    }
    all(".clip", prompt.article).forEach((clip) => { clip.hidden = hidden.has(clip.dataset.arm); });
    return prompt.article;
  }

  function draw() {
    const last = Math.max(0, Math.ceil(chosen.length / perPage) - 1);
    page = Math.min(Math.max(page, 0), last);
    const articles = chosen.slice(page * perPage, (page + 1) * perPage).map(articleOf);
    all(".prompt", list).filter((article) => !articles.includes(article)).forEach(report.leave);
    list.replaceChildren(...articles);
    articles.forEach(report.watch);
    const few = chosen.length === prompts.length;
    element("shown").textContent = few ? `${prompts.length} prompts` : `${chosen.length} of ${prompts.length} prompts`;
    element("nothing").classList.toggle("off", chosen.length > 0);
    document.querySelector(".pages").classList.toggle("off", last === 0);
    element("at").textContent = `${page * perPage + 1} to ${Math.min((page + 1) * perPage, chosen.length)} of ${chosen.length}`;
    element("before").disabled = page === 0;
    element("after").disabled = page === last;
  }

  const number = (id, otherwise) => {
    const field = element(id);
    return field && field.value !== "" ? Number(field.value) : otherwise;
  };

  function fits() {
    const action = element("action").value;
    const bounds = ["spatial", "temporal"].map((name) => [number(`${name}-from`, -Infinity), number(`${name}-to`, Infinity)]);
    const asked = bounds.map(([low, high]) => low > -Infinity || high < Infinity);
    const within = (value, index) => !asked[index] || (value !== null && value >= bounds[index][0] && value <= bounds[index][1]);
    const filtered = action !== "" || asked.includes(true);
    element("filters").classList.toggle("on", filtered);
    if (!filtered) return () => true;
    return (prompt) => prompt.clips.some(([arm, name, spatial, temporal]) =>
      !hidden.has(arm) && (action === "" || name === action) && within(spatial, 0) && within(temporal, 1));
  }

  function choose() {
    const words = element("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const fit = fits();
    const by = element("sort").value;
    const up = by === "order" || by === "ssim" ? 1 : -1;
    chosen = prompts
      .filter((prompt) => words.every((word) => prompt.words.includes(word)) && fit(prompt))
      .sort((a, b) => up * (a[by] - b[by]) || a.order - b.order);
    page = 0;
    draw();
  }

  function clear() {
    all(".demand").forEach((field) => { field.value = ""; });
    element("action").value = "";
    element("find").value = "";
    choose();
  }

  function turn(step) {
    page += step;
    draw();
    list.scrollIntoView({ behavior: "instant", block: "start" });
  }

  ["find", "action", ...all(".demand").map((field) => field.id)].forEach((id) => element(id).addEventListener("input", choose));
  element("sort").addEventListener("change", choose);
  element("clear").addEventListener("click", clear);
  element("all").addEventListener("click", clear);
  element("before").addEventListener("click", () => turn(-1));
  element("after").addEventListener("click", () => turn(1));
  all("input.arm").forEach((box) => box.addEventListener("change", () => {
    if (box.checked) hidden.delete(box.value);
    else hidden.add(box.value);
    all(".clip").filter((clip) => clip.dataset.arm === box.value && !box.checked)
      .forEach((clip) => all("video", clip).forEach((video) => video.pause()));
    choose();
    report.rejoin();
  }));
  document.addEventListener("click", ({ target }) => {
    const filters = element("filters");
    if (filters.open && !filters.contains(target)) filters.open = false;
  });

  /* From a mark of a chart to its videos. */
  document.addEventListener("click", ({ target }) => {
    const mark = target.closest("[data-go]");
    const prompt = mark && prompts.find((one) => one.key === mark.dataset.go);
    if (!prompt) return;
    clear();
    page = Math.floor(chosen.indexOf(prompt) / perPage);
    draw();
    report.turnTo("prompts");
    all(".aimed").forEach((other) => other.classList.remove("aimed"));
    prompt.article.classList.add("aimed");
    prompt.article.scrollIntoView({ behavior: "instant", block: "center" });
  });

  draw();
})();
