import { describe, expect, test } from 'vitest';
import {
  createPageWriter,
  type Family,
  numberOf,
  parseSample,
  readPage,
  type Sample,
} from '../../../operator/core/exposition.ts';

describe('a line is a sample', () => {
  test.each<[string, Sample]>([
    ['up 1', { name: 'up', labels: [], value: '1' }],
    ['up{} 1', { name: 'up', labels: [], value: '1' }],
    [
      'up{a="b"} 1.5e+09 1700000000123',
      { name: 'up', labels: [['a', 'b']], value: '1.5e+09', timestampMs: 1700000000123 },
    ],
    [
      'up{ a = "b" , c="" , } NaN',
      {
        name: 'up',
        labels: [
          ['a', 'b'],
          ['c', ''],
        ],
        value: 'NaN',
      },
    ],
    [
      'up{a="b", c="",} -Inf -5',
      {
        name: 'up',
        labels: [
          ['a', 'b'],
          ['c', ''],
        ],
        value: '-Inf',
        timestampMs: -5,
      },
    ],
    [String.raw`up{a="say \"hi\"\n\\"} .5`, { name: 'up', labels: [['a', 'say "hi"\n\\']], value: '.5' }],
    ['up{a="}, b=\\"x\\" {"} 1\r', { name: 'up', labels: [['a', '}, b="x" {']], value: '1' }],
    ['up{a="üüü"} 0', { name: 'up', labels: [['a', 'üüü']], value: '0' }],
  ])('%s', (line, expected) => {
    expect(parseSample(line)).toEqual(expected);
  });
});

describe('a line is none', () => {
  test.each([
    [''],
    ['# HELP up is'],
    ['up'],
    ['1up 1'],
    ['up{a="b"}1'],
    ['up{a=b} 1'],
    ['up{a="b" c="d"} 1'],
    ['up{,} 1'],
    ['up{a="b"'],
    ['up{a="b"} '],
    ['up{a="b"} 1 2 3'],
    ['up{a="b"} 1 2.5'],
    ['up{a="b"} 0x10'],
    ['up{a="b"} 1e9999'],
    ['up{a="b"} one'],
    ['up{a="b"} 1 # {x="y"} 1'],
    [String.raw`up{a="\x"} 1`],
    ['up{a="b",a="c"} 1'],
    ['up{a="open} 1'],
    [`up{a="${'x'.repeat(20_000)}"} 1`],
    [`up{${Array.from({ length: 65 }, (_, i) => `l${i}="x"`).join(',')}} 1`],
    ['up {a="b"} 1'],
    ['up\u00a01'],
  ])('%s', (line) => {
    expect(parseSample(line)).toBeUndefined();
  });

  test('though it is made to be slow to find out', () => {
    const from = performance.now();
    for (const line of [
      `up{a="${'\\\\'.repeat(8000)}`,
      `up{${'a="b",'.repeat(2000)}`,
      `up${' '.repeat(16_000)}x`,
      `# TYPE ${'a'.repeat(16_000)} `,
    ])
      expect(parseSample(line)).toBeUndefined();
    expect(performance.now() - from).toBeLessThan(100);
  });
});

test.each([
  ['+Inf', Number.POSITIVE_INFINITY],
  ['-Inf', Number.NEGATIVE_INFINITY],
  ['NaN', Number.NaN],
  ['1.5e+09', 1.5e9],
  ['.5', 0.5],
])('%s is the number %d', (value, expected) => {
  expect(numberOf({ name: 'x', labels: [], value })).toBe(expected);
});

describe('a page', () => {
  const copy = (text: string, most = 1000): string => {
    const page = createPageWriter(most);
    readPage(text, (sample, family) => page.add(sample, family));
    return page.text();
  };
  const good =
    '# HELP a_seconds How long, with a \\\\ and\\nmore\n# TYPE a_seconds histogram\n' +
    'a_seconds_bucket{le="1"} 1\na_seconds_bucket{le="+Inf"} 2\na_seconds_sum 3\na_seconds_count 2\n' +
    '# HELP b_total B\n# TYPE b_total counter\nb_total{x="1"} 5 1700000000000\n';

  test('that is well formed comes out as it went in', () => {
    expect(copy(good)).toBe(good);
  });

  test.each([
    ['malformed lines are left out', 'x 1\nx{ 2\n}{}{\ny 3', 'x 1\ny 3\n'],
    ['a series that is there twice stays once', 'x{a="1"} 1\nx{a="1"} 2\n', 'x{a="1"} 1\n'],
    [
      'families that are torn apart are put together',
      '# TYPE x gauge\nx 1\ny 1\n# TYPE x gauge\nx{a="1"} 2\n',
      '# TYPE x gauge\nx 1\nx{a="1"} 2\ny 1\n',
    ],
    ['a type that is none is not told', '# TYPE x evil\nx 1\n', 'x 1\n'],
    ['a help without samples is not told', '# HELP x about\n# TYPE x gauge\ny 1\n', 'y 1\n'],
    ['comments go', '# once upon a time\nx 1\n#\n', 'x 1\n'],
    ['a help with a stray backslash can be read again', '# HELP x a\\b\nx 1\n', '# HELP x a\\\\b\nx 1\n'],
    ['the end of a page without a line feed is a line, too', 'x 1', 'x 1\n'],
    ['nothing is nothing', '', ''],
  ])('%s', (_, given, expected) => {
    expect(copy(given)).toBe(expected);
    expect(copy(copy(given))).toBe(copy(given));
  });

  test('holds no more samples than it may', () => {
    expect(copy('x{a="1"} 1\nx{a="2"} 1\nx{a="3"} 1\n', 2)).toBe('x{a="1"} 1\nx{a="2"} 1\n');
  });

  test('says of each sample what was said of its family', () => {
    const seen: [string, Family][] = [];
    readPage(good, (sample, family) => seen.push([sample.name, family]));
    expect(seen.map(([name, family]) => [name, family.name, family.type])).toEqual([
      ['a_seconds_bucket', 'a_seconds', 'histogram'],
      ['a_seconds_bucket', 'a_seconds', 'histogram'],
      ['a_seconds_sum', 'a_seconds', 'histogram'],
      ['a_seconds_count', 'a_seconds', 'histogram'],
      ['b_total', 'b_total', 'counter'],
    ]);
  });
});
