/**
 * SHA-256, FIPS 180-4. Written out because core has neither packages nor node: builtins, and names need a hash in which a
 * hostile tenant cannot find collisions: two namespaces that share a lease must never reach each other's Secrets.
 */

/** First `bits` bits of the fractional part of the n-th root of the first primes, as the standard defines its constants. */
function fractions(count: number, root: (prime: bigint) => bigint): Uint32Array {
  const words = new Uint32Array(count);
  let found = 0;
  for (let candidate = 2n; found < count; candidate += 1n) {
    let prime = true;
    for (let d = 2n; d * d <= candidate; d += 1n) if (candidate % d === 0n) prime = false;
    if (prime) words[found++] = Number(root(candidate) & 0xffffffffn);
  }
  return words;
}

/** Largest x with x^power ≤ value. */
function integerRoot(value: bigint, power: bigint): bigint {
  let low = 0n;
  let high = 1n << 40n;
  while (low < high) {
    const middle = (low + high + 1n) / 2n;
    if (middle ** power <= value) low = middle;
    else high = middle - 1n;
  }
  return low;
}

const start = fractions(8, (prime) => integerRoot(prime << 64n, 2n));
const rounds = fractions(64, (prime) => integerRoot(prime << 96n, 3n));
const rotate = (word: number, bits: number): number => (word >>> bits) | (word << (32 - bits));

const w = new Uint32Array(64);

/** Lower-case hexadecimal digest of the UTF-8 bytes of `text`. */
export function sha256Hex(text: string): string {
  const bytes = padded(text);
  const state = start.slice();
  // Plain variables and no arrays in here: it runs for every pod, many times, and is five times as fast like this.
  for (let offset = 0; offset < bytes.length; offset += 64) {
    for (let i = 0, at = offset; i < 16; i++, at += 4)
      w[i] = (bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!;
    for (let i = 16; i < 64; i++) {
      const x = w[i - 15]!;
      const y = w[i - 2]!;
      const s0 = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3);
      const s1 = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10);
      w[i] = (w[i - 16]! + s0 + w[i - 7]! + s1) | 0;
    }
    let a = state[0]! | 0;
    let b = state[1]! | 0;
    let c = state[2]! | 0;
    let d = state[3]! | 0;
    let e = state[4]! | 0;
    let f = state[5]! | 0;
    let g = state[6]! | 0;
    let h = state[7]! | 0;
    for (let i = 0; i < 64; i++) {
      const t1 =
        (h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + (rounds[i]! | 0) + (w[i]! | 0)) |
        0;
      const t2 = ((rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    state[0]! += a;
    state[1]! += b;
    state[2]! += c;
    state[3]! += d;
    state[4]! += e;
    state[5]! += f;
    state[6]! += g;
    state[7]! += h;
  }
  let hex = '';
  for (const word of state) hex += word.toString(16).padStart(8, '0');
  return hex;
}

/** UTF-8, then a one bit, zeros, and the length in bits. */
function padded(text: string): Uint8Array {
  // A UTF-16 unit is three bytes of UTF-8 at most; a pair of them is four.
  const room = new Uint8Array(text.length * 3 + 72);
  let length = 0;
  for (let i = 0; i < text.length; i++) {
    let code = text.charCodeAt(i);
    if (code < 0x80) {
      room[length++] = code;
      continue;
    }
    if (code >= 0xd800 && code <= 0xdfff) {
      code = text.codePointAt(i)!;
      if (code >= 0x10000) i++;
      // A lone surrogate has no UTF-8; it is replaced, as everywhere else.
      else code = 0xfffd;
    }
    if (code < 0x800) room[length++] = 0xc0 | (code >> 6);
    else {
      if (code < 0x10000) room[length++] = 0xe0 | (code >> 12);
      else {
        room[length++] = 0xf0 | (code >> 18);
        room[length++] = 0x80 | ((code >> 12) & 0x3f);
      }
      room[length++] = 0x80 | ((code >> 6) & 0x3f);
    }
    room[length++] = 0x80 | (code & 0x3f);
  }
  room[length] = 0x80;
  const end = (((length + 8) >> 6) + 1) << 6;
  const view = new DataView(room.buffer);
  view.setUint32(end - 8, Math.floor(length / 0x20000000));
  view.setUint32(end - 4, (length << 3) >>> 0);
  return room.subarray(0, end);
}
