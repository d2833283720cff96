import { describe, expect, test } from 'vitest';
import { niceStep, type Plot, svg } from '../../bench/plot.ts';

const plot = (change: Partial<Plot['panels'][number]> = {}): Plot => ({
  title: 'Times <here> & "there"',
  note: 'one line',
  panels: [
    {
      title: 'panel',
      x: { label: 'pods', scale: 'log' },
      y: { label: 'seconds', scale: 'log' },
      series: [
        {
          name: 'ours',
          tone: 'ours',
          points: [
            [10, 0.5],
            [1000, 50],
          ],
          mark: (_, y) => `${y} s`,
        },
      ],
      ...change,
    },
  ],
});
const pointsOf = (text: string) =>
  [...text.matchAll(/<polyline class="line ours" points="([^"]*)"/g)].map(([, points]) =>
    points!.split(' ').map((point) => point.split(',').map(Number)),
  )[0];

describe('a plot', () => {
  test('puts each power of ten at its place, and the labels with it', () => {
    const text = svg(plot());
    expect(pointsOf(text)).toEqual([
      [0, 191.8],
      [400, 25.1],
    ]);
    expect([...text.matchAll(/text-anchor="middle">([\d,]+)</g)].map(([, tick]) => tick)).toEqual([
      '10',
      '100',
      '1,000',
    ]);
    expect(text).toContain('>50 s</text>');
  });

  test('begins at zero where the axis is linear, and shows a bound that lies above all points', () => {
    const text = svg(
      plot({
        x: { label: 'x' },
        y: { label: 'MB' },
        bound: { y: 500, name: 'promised' },
        series: [
          {
            name: 'ours',
            tone: 'ours',
            points: [
              [0, 0],
              [10, 100],
            ],
          },
        ],
      }),
    );
    expect(pointsOf(text)).toEqual([
      [0, 250],
      [400, 200],
    ]);
    expect(text).toContain('promised');
  });

  test('is well-formed whatever its words are, and shows on light and dark', () => {
    const text = svg(plot());
    expect(text).toContain('Times &lt;here&gt; &amp; &quot;there&quot;');
    expect(text).toContain('prefers-color-scheme: dark');
    expect(text.match(/<g /g)?.length).toBe(text.match(/<\/g>/g)?.length);
    expect(text).not.toContain('NaN');
  });
});

test.each([
  [0.7, 1],
  [1, 1],
  [1.2, 2],
  [21, 50],
  [0.03, 0.05],
])('a step of at least %d is %d', (least, step) => expect(niceStep(least)).toBeCloseTo(step, 9));
