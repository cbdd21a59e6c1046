// Sends the chosen files and shows the tags beside the pictures. Without this script the form
// posts itself and the browser shows the JSON.
"use strict";

const form = document.getElementById("form");
const state = document.getElementById("state");
const problem = document.getElementById("problem");
const found = document.getElementById("found");
const button = form.querySelector("button");

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text ?? "";
  return made;
}

function shown(image, file) {
  const item = document.createElement("li");
  const picture = document.createElement("img");
  picture.alt = "";
  picture.src = URL.createObjectURL(file);
  picture.onload = picture.onerror = () => URL.revokeObjectURL(picture.src);
  const words = document.createElement("div");
  words.append(element("h3", image.name));
  if (image.error) {
    words.append(element("p", `The image ${image.error}.`));
  } else if (!image.tags.length) {
    words.append(element("p", "No tag reaches its threshold."));
  } else {
    const list = document.createElement("dl");
    for (const { tag, probability } of image.tags) {
      list.append(element("dt", tag), element("dd", `${Math.round(100 * probability)} %`));
    }
    words.append(list);
  }
  item.append(picture, words);
  return item;
}

async function send(files) {
  const body = new FormData();
  for (const file of files) body.append("images", file);
  const key = document.getElementById("key");
  const headers = key ? { Authorization: `Bearer ${key.value}` } : {};
  const response = await fetch(form.action, { method: "POST", body, headers });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  found.replaceChildren(...answer.images.map((image, i) => shown(image, files[i])));
  const { name, version } = answer.model;
  state.textContent = `Tagged by ${name}, version ${version}.`;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  problem.textContent = "";
  found.replaceChildren();
  state.textContent = "Tagging …";
  try {
    await send([...document.getElementById("images").files]);
  } catch (error) {
    state.textContent = "";
    problem.textContent = error.message;
  }
  button.disabled = false;
});
