// Of an ensemble's heat maps one is shown at a time, the first at first; without scripts all of them are.
const chooseMaps = (box) => {
  const maps = [...box.querySelectorAll(".heat")];
  if (maps.length < 2) return;
  const buttons = maps.map((map) => make("button", { type: "button", onclick: () => show(map) }, map.dataset.title));
  const show = (chosen) => {
    maps.forEach((map, place) => {
      map.hidden = map !== chosen;
      buttons[place].setAttribute("aria-pressed", String(map === chosen));
    });
  };
  box.querySelector("h4").after(make("div", { class: "switch", role: "group", "aria-label": "Measure" }, ...buttons));
  show(maps[0]);
};
