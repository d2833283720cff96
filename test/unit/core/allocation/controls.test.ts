/** What an owner writes into gpulease-controls, and what is made of it. */
import { expect, test } from 'vitest';
import { parseControls } from '../../../../operator/core/allocation/controls.ts';

const account = `0x${'aB'.repeat(20)}`;

test.each([
  ['nothing', undefined, { mode: 'Serve', drainSeconds: 600, faults: [] }],
  ['an empty one', {}, { mode: 'Serve', faults: [] }],
  ['a word in other letters', { mode: ' holdanddrain ' }, { mode: 'HoldAndDrain', faults: [] }],
  ['a word that is not known', { mode: 'Pause' }, { mode: 'Hold', faults: [expect.stringContaining('Serve, Hold')] }],
  ['a time', { mode: 'HoldAndDrain', drainSeconds: '30' }, { drainSeconds: 30, faults: [] }],
  ['no time', { drainSeconds: 'soon' }, { drainSeconds: 600, faults: [expect.stringContaining('drainSeconds')] }],
  ['a field that is not known', { Mode: 'Hold' }, { mode: 'Serve', faults: [expect.stringContaining('Mode')] }],
  ['a message that steers a terminal', { message: 'back\u001b[31m soon\n' }, { message: 'back [31m soon' }],
])('%s', (_name, data, expected) => expect(parseControls(data as never)).toMatchObject(expected));

test('blocked accounts, one a line or not, with comments; what is none is told', () => {
  const { blocked, faults } = parseControls({
    blocked: `${account} # spams\n# nobody\n0x12, 0x${'1'.repeat(40)}`,
  });
  expect([...blocked]).toEqual([account.toLowerCase(), `0x${'1'.repeat(40)}`]);
  expect(faults).toEqual([expect.stringContaining('0x12')]);
});
