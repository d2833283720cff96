/**
 * Plots as SVG, for a page that is light or dark: no background, colours that both show, text in the reader's font. Panels
 * side by side, each with lines of its own; figures stand at the ends of the lines, so that nobody has to guess from a grid.
 */
export interface Series {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
  /** The plain way is grey, ours is blue, more of ours is orange. */
  readonly tone: 'plain' | 'ours' | 'more';
  readonly dashed?: boolean;
  /** What stands beside a point. Nothing by default. */
  readonly mark?: (x: number, y: number) => string;
}

export interface Axis {
  /** With the unit. */
  readonly label: string;
  readonly scale?: 'linear' | 'log';
  readonly from?: number;
  readonly to?: number;
}

export interface Panel {
  readonly title: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly series: readonly Series[];
  /** A bound that was promised, as a thin line. */
  readonly bound?: { readonly y: number; readonly name: string };
}

export interface Plot {
  readonly title: string;
  /** What was measured, and where: one line. */
  readonly note: string;
  readonly panels: readonly Panel[];
}

const width = 400;
const height = 250;
const left = 62;
const top = 92;
const gap = 84;
const bottom = 58;

const style = `
  text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f }
  .title { font-size: 16px; font-weight: 600 }
  .panel { font-size: 13px; font-weight: 600 }
  .quiet { fill: #656d76 }
  .grid { stroke: #8c959f; stroke-opacity: .28; stroke-width: 1 }
  .axis { stroke: #8c959f; stroke-width: 1 }
  .bound { stroke: #cf222e; stroke-width: 1; stroke-dasharray: 2 3 }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round }
  .dashed { stroke-dasharray: 6 4 }
  .plain { stroke: #6e7781 } .fill-plain { fill: #6e7781 }
  .ours { stroke: #0969da } .fill-ours { fill: #0969da }
  .more { stroke: #bc4c00 } .fill-more { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .quiet { fill: #9198a1 }
    .plain { stroke: #9198a1 } .fill-plain { fill: #9198a1 }
    .ours { stroke: #4493f8 } .fill-ours { fill: #4493f8 }
    .more { stroke: #db6d28 } .fill-more { fill: #db6d28 }
    .bound { stroke: #f85149 }
  }`;

export function svg({ title, note, panels }: Plot): string {
  const whole = left + panels.length * width + (panels.length - 1) * gap + 40;
  const tall = top + height + bottom;
  const parts = panels.map(
    (panel, i) => `<g transform="translate(${left + i * (width + gap)} ${top})">\n${panelSvg(panel)}\n</g>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${whole} ${tall}" width="${whole}" height="${tall}" role="img" aria-label="${escaped(`${title}. ${note}`)}">
<style>${style}
</style>
<text class="title" x="14" y="26">${escaped(title)}</text>
<text class="quiet" x="14" y="45">${escaped(note)}</text>
${parts.join('\n')}
</svg>
`;
}

function panelSvg({ title, x, y, series, bound }: Panel): string {
  const points = series.flatMap((one) => one.points);
  const xs = scaleOf(
    x,
    points.map(([value]) => value),
    width,
  );
  const ys = scaleOf(y, [...points.map(([, value]) => value), ...(bound ? [bound.y] : [])], height);
  const at = (value: number) => round(height - ys.at(value));
  const out: string[] = [`<text class="panel" x="0" y="-26">${escaped(title)}</text>`];
  for (const tick of ys.ticks)
    out.push(
      `<line class="grid" x1="0" x2="${width}" y1="${at(tick)}" y2="${at(tick)}"/><text class="quiet" x="-8" y="${at(tick) + 4}" text-anchor="end">${inWords(tick)}</text>`,
    );
  for (const tick of xs.ticks)
    out.push(
      `<line class="axis" x1="${round(xs.at(tick))}" x2="${round(xs.at(tick))}" y1="${height}" y2="${height + 4}"/><text class="quiet" x="${round(xs.at(tick))}" y="${height + 18}" text-anchor="middle">${inWords(tick)}</text>`,
    );
  out.push(
    `<line class="axis" x1="0" x2="${width}" y1="${height}" y2="${height}"/>`,
    `<text x="${width / 2}" y="${height + 40}" text-anchor="middle">${escaped(x.label)}</text>`,
    `<text transform="translate(-46 ${height / 2}) rotate(-90)" text-anchor="middle">${escaped(y.label)}</text>`,
  );
  if (bound)
    out.push(
      `<line class="bound" x1="0" x2="${width}" y1="${at(bound.y)}" y2="${at(bound.y)}"/><text class="quiet" x="4" y="${at(bound.y) - 5}">${escaped(bound.name)}</text>`,
    );
  let legend = 0;
  for (const one of series) {
    const path = one.points.map(([px, py]) => `${round(xs.at(px))},${at(py)}`).join(' ');
    const dashed = one.dashed ? ' dashed' : '';
    out.push(`<polyline class="line ${one.tone}${dashed}" points="${path}"/>`);
    // Dots where there are few points: a curve of fifty needs none.
    if (one.points.length <= 8)
      for (const [px, py] of one.points)
        out.push(`<circle class="fill-${one.tone}" cx="${round(xs.at(px))}" cy="${at(py)}" r="3"/>`);
    // Above the line that ends highest, below all others, and never on an axis.
    const below = series.some((other) => other.mark && endOf(other) > endOf(one));
    for (const [px, py] of one.points) {
      const mark = one.mark?.(px, py);
      if (!mark) continue;
      const across = xs.at(px);
      const [shift, anchor] = across > width - 40 ? [4, 'end'] : across < 40 ? [6, 'start'] : [0, 'middle'];
      out.push(
        `<text x="${round(across) + shift}" y="${at(py) + (below ? 19 : -9)}" text-anchor="${anchor}">${escaped(mark)}</text>`,
      );
    }
    out.push(
      `<line class="line ${one.tone}${dashed}" x1="${legend}" x2="${legend + 22}" y1="-11" y2="-11"/><text x="${legend + 28}" y="-7">${escaped(one.name)}</text>`,
    );
    legend += 28 + one.name.length * 7 + 22;
  }
  return out.join('\n');
}

const endOf = ({ points }: Series): number => points.at(-1)?.[1] ?? 0;

interface Scale {
  readonly ticks: readonly number[];
  /** Pixels from the beginning. */
  at(value: number): number;
}

function scaleOf(axis: Axis, values: readonly number[], pixels: number): Scale {
  const least = axis.from ?? Math.min(...values);
  const most = axis.to ?? Math.max(...values);
  if (axis.scale === 'log') {
    const [low, high] = [10 ** Math.floor(Math.log10(least) + 1e-9), 10 ** Math.ceil(Math.log10(most) - 1e-9)];
    const span = Math.log10(Math.max(high, low * 10)) - Math.log10(low);
    const ticks: number[] = [];
    for (let tick = low; tick <= Math.max(high, low * 10) * 1.001; tick *= 10) ticks.push(tick);
    return { ticks, at: (value) => ((Math.log10(value) - Math.log10(low)) / span) * pixels };
  }
  const from = axis.from ?? 0;
  const step = niceStep((most - from) / 5 || 1);
  const to = axis.to ?? Math.ceil(most / step - 1e-9) * step;
  const ticks: number[] = [];
  for (let i = 0; from + i * step <= to + step / 1000; i += 1) ticks.push(from + i * step);
  return { ticks, at: (value) => ((value - from) / (to - from)) * pixels };
}

/** 1, 2 or 5 times a power of ten, not less than `least`. */
export function niceStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].find((digit) => digit * power >= least * 0.999) ?? 10;
  return step * power;
}

const round = (value: number): number => Math.round(value * 10) / 10;

function inWords(value: number): string {
  const plain = Number(value.toPrecision(3));
  return Math.abs(plain) >= 1000 ? plain.toLocaleString('en-US') : String(plain);
}

const escaped = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
