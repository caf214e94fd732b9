// SPDX-License-Identifier: Apache-2.0
// From a picture to a network's input, step for step as starshift.data.transforms does it: resize (antialiased, in
// 8 bits, rows before columns), centre crop, normalisation.

const LONGEST = 4; // an image longer than so many times its short side is cut to it, about its centre
const FILTERS = {
  bilinear: {support: 1, at: x => Math.max(0, 1 - Math.abs(x))},
  bicubic: {
    support: 2,
    at(x) {
      const a = -0.5, t = Math.abs(x);
      if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
      return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
    },
  },
};

// Python's round: halves go to the even neighbour.
function roundHalfEven(value) {
  const low = Math.floor(value), rest = value - low;
  if (rest !== 0.5) return Math.round(value);
  return low % 2 ? low + 1 : low;
}

// The smallest size of the same aspect ratio that covers the target.
function resizedSize(height, width, [tall, wide]) {
  if (tall === wide) {
    return height <= width ? [tall, Math.trunc(tall * width / height)] : [Math.trunc(tall * height / width), tall];
  }
  const ratio = Math.min(height / tall, width / wide);
  return [Math.max(roundHalfEven(height / ratio), tall), Math.max(roundHalfEven(width / ratio), wide)];
}

// For each output position the first input and the weights of those that make it.
function weightsOf(from, to, name) {
  const scale = from / to, filter = FILTERS[name], stretch = Math.max(scale, 1), reach = filter.support * stretch;
  const all = [];
  for (let i = 0; i < to; i++) {
    const centre = scale * (i + 0.5);
    const first = Math.max(0, Math.trunc(centre - reach + 0.5)), last = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = [];
    for (let j = first; j < last; j++) weights.push(filter.at((j - centre + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    all.push({first, weights: weights.map(weight => weight / sum)});
  }
  return all;
}

// Pixels are {height, width, channels, data: Uint8ClampedArray of H, W, C}.
function resizeAxis(image, to, name, rows) {
  const {height, width, channels, data} = image;
  const weights = weightsOf(rows ? height : width, to, name);
  const out = {height: rows ? to : height, width: rows ? width : to, channels, data: null};
  out.data = new Uint8ClampedArray(out.height * out.width * channels); // rounds and clamps what is written
  const step = (rows ? width : 1) * channels;
  for (let y = 0; y < out.height; y++)
    for (let x = 0; x < out.width; x++) {
      const {first, weights: own} = weights[rows ? y : x];
      const start = (rows ? first * width + x : y * width + first) * channels;
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let k = 0; k < own.length; k++) sum += own[k] * data[start + c + k * step];
        out.data[(y * out.width + x) * channels + c] = Math.floor(Math.max(sum, 0) + 0.5);
      }
    }
  return out;
}

function resizeNearest(image, height, width) {
  const {channels} = image, data = new Uint8ClampedArray(height * width * channels);
  for (let y = 0; y < height; y++) {
    const from = Math.min(Math.floor((y + 0.5) * image.height / height), image.height - 1);
    for (let x = 0; x < width; x++) {
      const over = Math.min(Math.floor((x + 0.5) * image.width / width), image.width - 1);
      for (let c = 0; c < channels; c++)
        data[(y * width + x) * channels + c] = image.data[(from * image.width + over) * channels + c];
    }
  }
  return {height, width, channels, data};
}

function resize(image, height, width, name) {
  if (image.height === height && image.width === width) return image;
  if (name === "nearest") return resizeNearest(image, height, width);
  const narrow = image.width === width ? image : resizeAxis(image, width, name, false);
  return narrow.height === height ? narrow : resizeAxis(narrow, height, name, true);
}

function crop(image, top, left, height, width) {
  const {channels} = image, data = new Uint8ClampedArray(height * width * channels);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * image.width + left) * channels;
    data.set(image.data.subarray(start, start + width * channels), y * width * channels);
  }
  return {height, width, channels, data};
}

// RGBA of a canvas to RGB, or to luma (ITU-R 601, in Pillow's fixed point) for networks of one channel.
function withChannels(rgba, channels) {
  const count = rgba.width * rgba.height, from = rgba.data, data = new Uint8ClampedArray(count * channels);
  for (let i = 0; i < count; i++) {
    const red = from[4 * i], green = from[4 * i + 1], blue = from[4 * i + 2];
    if (channels === 1) data[i] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    else data.set([red, green, blue], 3 * i);
  }
  return {height: rgba.height, width: rgba.width, channels, data};
}

// The pixels that the network sees: ImageData of the whole upright picture in, {height, width, channels, data} out.
export function cropped(rgba, preprocessing) {
  const [channels, height, width] = preprocessing.input_size, share = preprocessing.crop_pct;
  const tall = Math.min(rgba.height, LONGEST * rgba.width), wide = Math.min(rgba.width, LONGEST * rgba.height);
  let image = withChannels(rgba, channels);
  if (tall !== image.height || wide !== image.width)
    image = crop(image, Math.floor((image.height - tall) / 2), Math.floor((image.width - wide) / 2), tall, wide);
  const [high, broad] = resizedSize(tall, wide, [Math.floor(height / share), Math.floor(width / share)]);
  image = resize(image, high, broad, preprocessing.interpolation);
  return crop(image, roundHalfEven((high - height) / 2), roundHalfEven((broad - width) / 2), height, width);
}

// (value / 255 - mean) / std as Float32Array of C, H, W.
export function normalised(image, {mean, std}) {
  const {height, width, channels, data} = image, count = height * width, out = new Float32Array(channels * count);
  for (let c = 0; c < channels; c++) {
    const scale = 1 / (255 * std[c]), shift = -mean[c] / std[c];
    for (let i = 0; i < count; i++) out[c * count + i] = data[i * channels + c] * scale + shift;
  }
  return out;
}
