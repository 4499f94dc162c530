// Asks for the page again and puts in what has changed, part by part: nothing flickers, nothing is rendered twice.
(() => {
  "use strict";
  const lost = document.getElementById("lost");
  let wanted = true;
  const refresh = async () => {
    if (document.hidden) { wanted = true; return; }
    wanted = false;
    try {
      const answer = await fetch(location.pathname, { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-part]")) {
        const now = next.getElementById(part.id);
        if (now && now.innerHTML !== part.innerHTML) part.replaceChildren(...now.childNodes);
      }
      document.title = next.title;
      lost.hidden = true;
    } catch {
      if (lost.hidden) {
        lost.textContent = "The agent has not answered since " + new Date().toLocaleTimeString() + ". What is shown may be old.";
        lost.hidden = false;
      }
    }
  };
  setInterval(refresh, 3000);
  document.addEventListener("visibilitychange", () => { if (wanted && !document.hidden) refresh(); });
  document.documentElement.dataset.live = "yes";
})();
