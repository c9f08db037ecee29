// What a page can do: enlarge a picture, wipe between two, change between several. It asks for nothing.
"use strict";

document.documentElement.classList.add("live");

for (const views of document.querySelectorAll(".views")) {
  const control = views.querySelector("input");
  const pictures = [...views.querySelectorAll(".view")];
  const change = () => {
    if (views.classList.contains("wipe")) {
      views.style.setProperty("--cut", control.value + "%");
    } else {
      pictures.forEach((picture, place) => picture.classList.toggle("shown", place === Number(control.value)));
    }
  };
  control.addEventListener("input", change);
  change();
}

const sheet = document.createElement("dialog");
sheet.addEventListener("click", () => sheet.close());
document.body.append(sheet);

for (const picture of document.querySelectorAll("figure img")) {
  picture.tabIndex = 0;
  const enlarge = () => {
    const copy = new Image();
    copy.src = picture.currentSrc || picture.src;
    copy.alt = picture.alt;
    copy.onload = () => { copy.width = copy.naturalWidth * (copy.naturalWidth < 2000 ? 2 : 1); };
    sheet.replaceChildren(copy);
    sheet.showModal();
  };
  picture.addEventListener("click", enlarge);
  picture.addEventListener("keydown", (event) => { if (event.key === "Enter") enlarge(); });
}
