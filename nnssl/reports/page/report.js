(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const canvas = document.getElementById("viewer-canvas");
  const state = document.getElementById("viewer-state");
  const select = document.getElementById("viewer-case");
  const view = document.getElementById("viewer-view");
  const opacity = document.getElementById("viewer-opacity");
  const layers = document.getElementById("viewer-layers");
  const last = data.cases[0].layers.filter(function (name) { return name.startsWith("mask:"); }).pop() || "reference";
  const hidden = new Set(data.cases.flatMap(function (each) { return each.layers; }));
  hidden.delete(last);
  let viewer = null;
  let shown = [];

  function colours() {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    for (const label of data.labels) {
      const number = parseInt(label.colour.slice(1), 16);
      map.R.push(number >> 16);
      map.G.push((number >> 8) & 255);
      map.B.push(number & 255);
      map.A.push(255);
      map.I.push(label.value);
      map.labels.push(label.name);
    }
    return map;
  }

  function load(script) {
    return new Promise(function (done, failed) {
      if (!script) { done(); return; }
      const element = document.createElement("script");
      element.src = script;
      element.onload = done;
      element.onerror = function () { failed(new Error("the volumes beside the report are missing: " + script)); };
      document.head.append(element);
    });
  }

  function strength(name) {
    return hidden.has(name) ? 0 : Number(opacity.value) / 100;
  }

  function redraw() {
    shown.forEach(function (name, index) {
      if (name !== "image") { viewer.setOpacity(index, strength(name)); }
    });
  }

  function listLayers(names) {
    layers.querySelectorAll("label").forEach(function (element) { element.remove(); });
    for (const name of names.filter(function (each) { return each !== "image"; })) {
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !hidden.has(name);
      box.addEventListener("change", function () {
        if (box.checked) { hidden.delete(name); } else { hidden.add(name); }
        redraw();
      });
      const label = document.createElement("label");
      label.append(box, " " + name.replace(/^mask:/, ""));
      layers.append(label);
    }
  }

  async function show(number) {
    const chosen = data.cases.find(function (each) { return each.number === number; });
    state.textContent = "loading " + chosen.case;
    if (!(window.reportVolumes && window.reportVolumes[number])) { await load(chosen.script); }
    const volumes = window.reportVolumes[number];
    while (viewer.volumes.length) { viewer.removeVolumeByIndex(0); }
    shown = chosen.layers.slice();
    for (const name of shown) {
      const image = await niivue.NVImage.loadFromBase64({
        base64: volumes[name], name: "layer.nii.gz", colormap: "gray",
        opacity: name === "image" ? 1 : strength(name), cal_min: 0, cal_max: 255
      });
      if (name !== "image" && data.labels.length) { image.setColormapLabel(colours()); }
      viewer.addVolume(image);
    }
    viewer.updateGLVolume();
    listLayers(shown);
    state.textContent = chosen.case + ": " + chosen.scores;
  }

  function ask() {
    show(Number(select.value)).then(function () { document.body.dataset.viewer = "ready"; }, function (error) {
      state.textContent = "The viewer cannot show this case: " + error.message;
    });
  }

  async function start() {
    if (!document.createElement("canvas").getContext("webgl2")) {
      state.textContent = "This browser has no WebGL 2, which the viewer needs. The pictures above show the same cases.";
      return;
    }
    viewer = new niivue.Niivue({
      backColor: [0, 0, 0, 1], dragAndDropEnabled: false, isResizeCanvas: true, show3Dcrosshair: true,
      logLevel: "error", isColorbar: false, isRadiologicalConvention: true
    });
    await viewer.attachToCanvas(canvas);
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    select.addEventListener("change", ask);
    opacity.addEventListener("input", redraw);
    view.addEventListener("change", function () {
      viewer.setSliceType(view.value === "render" ? viewer.sliceTypeRender : viewer.sliceTypeMultiplanar);
    });
    ask();
  }

  start().catch(function (error) { state.textContent = "The viewer cannot start: " + error.message; });
})();
