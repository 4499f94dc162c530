// Asks for the page again and puts in what has changed, part by part: nothing flickers, nothing is rendered twice.
// Copies commands.
(() => {
  "use strict";
  const lost = document.getElementById("lost");
  const said = document.getElementById("said");
  const icon = document.querySelector("link[rel=icon]");
  let wanted = true;
  // What somebody selects stays for a minute, to be copied.
  let selectedAt = 0;
  document.addEventListener("selectionchange", () => { selectedAt = Date.now(); });
  const isSelected = (part) => {
    const selection = getSelection();
    const isFresh = !selection.isCollapsed && Date.now() - selectedAt < 60000;
    return isFresh && selection.rangeCount > 0 && selection.getRangeAt(0).intersectsNode(part);
  };
  const put = (part, now) => {
    if (!now || now.innerHTML === part.innerHTML || isSelected(part)) return;
    const reached = () => [...part.querySelectorAll("a, button")];
    const focused = reached().indexOf(document.activeElement);
    part.replaceChildren(...now.childNodes);
    if (focused >= 0) reached()[focused]?.focus({ preventScroll: true });
  };
  const refresh = async () => {
    if (document.hidden) { wanted = true; return; }
    wanted = false;
    try {
      const answer = await fetch(location.pathname, { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-part]")) put(part, next.getElementById(part.id));
      document.title = next.title;
      const nextIcon = next.querySelector("link[rel=icon]");
      if (nextIcon && nextIcon.href !== icon.href) icon.href = nextIcon.href;
      lost.hidden = true;
    } catch {
      if (lost.hidden) {
        lost.textContent = "The agent has not answered since " + new Date().toLocaleTimeString() + ". What is shown may be old.";
        lost.hidden = false;
        document.title = "\u25a0 no answer \u00b7 opik-offline";
        icon.href = icon.dataset.lost;
      }
    }
  };
  // Without a secure context there is no clipboard, but the command can be selected.
  const copy = async (button) => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      said.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      said.textContent = "Selected, to be copied";
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (button) copy(button);
  });
  setInterval(refresh, 3000);
  document.addEventListener("visibilitychange", () => { if (wanted && !document.hidden) refresh(); });
  document.documentElement.dataset.live = "yes";
})();
