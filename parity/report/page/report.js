"use strict";
// The slider and its zoom. Without this script both pictures stand side by side.
for (const root of document.querySelectorAll("[data-compare]")) {
  const [frame, scroller, stage, handle] = [".frame", ".scroller", ".stage", ".handle"].map((name) => root.querySelector(name));
  const [before, range, output] = [".before", "input", "output"].map((name) => root.querySelector(name));
  const largest = 16;
  let split = 0.5; // where the pictures meet, as a share of the frame's width
  let zoom = 1; // 1: the whole picture fits the frame

  const draw = () => {
    const place = split * scroller.clientWidth;
    handle.style.left = `${place}px`;
    const right = stage.clientWidth - scroller.scrollLeft - place;
    before.style.clipPath = `inset(0 ${Math.max(0, right)}px 0 0)`;
  };
  const setSplit = (share) => {
    split = Math.min(1, Math.max(0, share));
    range.value = String(Math.round(100 * split));
    draw();
  };
  // Zooms around a point of the frame, given in its pixels.
  const setZoom = (wanted, x = scroller.clientWidth / 2, y = scroller.clientHeight / 2) => {
    const next = Math.min(largest, Math.max(1, wanted));
    const [left, top] = [scroller.scrollLeft + x, scroller.scrollTop + y].map((place) => (place * next) / zoom);
    zoom = next;
    stage.style.width = `${100 * zoom}%`;
    root.classList.toggle("zoomed", zoom > 1);
    scroller.scrollTo(left - x, top - y);
    const shown = stage.clientWidth / Number(before.querySelector("img").getAttribute("width"));
    root.classList.toggle("cells", shown >= 2);
    output.textContent = zoom === 1 ? "fit" : `${Math.round(100 * shown)} %`;
    draw();
  };
  const steps = { in: () => setZoom(zoom * 2), out: () => setZoom(zoom / 2), fit: () => setZoom(1) };

  range.addEventListener("input", () => setSplit(Number(range.value) / 100));
  scroller.addEventListener("scroll", draw);
  new ResizeObserver(draw).observe(scroller);
  for (const button of root.querySelectorAll("[data-zoom]")) button.addEventListener("click", steps[button.dataset.zoom]);

  // The handle always moves the border; the picture does while it fits, and is moved itself when zoomed.
  let drag = null;
  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const moves = event.target === handle || zoom === 1 ? "border" : "picture";
    if (moves === "picture" && event.pointerType !== "mouse") return; // a finger scrolls by itself
    drag = { moves, x: event.clientX, y: event.clientY };
    frame.setPointerCapture(event.pointerId);
    if (moves === "border") setSplit((event.clientX - frame.getBoundingClientRect().left) / frame.clientWidth);
    event.preventDefault();
    scroller.focus({ preventScroll: true });
  });
  frame.addEventListener("pointermove", (event) => {
    if (!drag) return;
    if (drag.moves === "border") {
      setSplit((event.clientX - frame.getBoundingClientRect().left) / frame.clientWidth);
    } else {
      scroller.scrollBy(drag.x - event.clientX, drag.y - event.clientY);
      [drag.x, drag.y] = [event.clientX, event.clientY];
    }
  });
  for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, () => (drag = null));
  frame.addEventListener("dblclick", (event) => {
    const box = frame.getBoundingClientRect();
    setZoom(zoom > 1 ? 1 : 4, event.clientX - box.left, event.clientY - box.top);
  });
  frame.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      const box = frame.getBoundingClientRect();
      setZoom(zoom * (event.deltaY < 0 ? 1.25 : 0.8), event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );
  scroller.addEventListener("keydown", (event) => {
    const keys = { "+": steps.in, "=": steps.in, "-": steps.out, 0: steps.fit };
    if (zoom === 1) Object.assign(keys, { ArrowLeft: () => setSplit(split - 0.02), ArrowRight: () => setSplit(split + 0.02) });
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });

  scroller.tabIndex = 0;
  scroller.setAttribute("role", "group");
  scroller.setAttribute("aria-label", "Original and reconstruction. Left and right move the border, plus and minus zoom, 0 fits; zoomed, the arrows move the picture.");
  root.querySelector(".controls").hidden = false;
  root.classList.add("live");
  setZoom(1);
}

// On paper everything is open, and opens no further.
const closed = [];
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) {
    closed.push(one);
    one.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const one of closed.splice(0)) one.open = false;
});
