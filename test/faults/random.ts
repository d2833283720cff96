/** A small generator of numbers with a seed (mulberry32): what went wrong once can be had again. */
export interface Random {
  /** At least 0, below 1. */
  (): number;
  between(from: number, to: number): number;
  of<T>(list: readonly T[]): T;
}

export function seeded(seed: number): Random {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
  return Object.assign(next, {
    between: (from: number, to: number) => from + next() * (to - from),
    of: <T>(list: readonly T[]): T => list[Math.floor(next() * list.length)]!,
  });
}
