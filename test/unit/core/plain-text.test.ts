/** What a provider says is shown to people: nothing of it steers their terminal. */
import { expect, test } from 'vitest';
import { plainStrings, plainText } from '../../../operator/core/plain-text.ts';

test.each([
  ['plain words stay, in any language', 'back off: größe 10 → 20, 完了', 'back off: größe 10 → 20, 完了'],
  ['tabs and ends of lines stay', 'a\tb\nc', 'a\tb\nc'],
  ['colours and cleared screens do not', 'x\u001b[2J\u001b[31my', 'x [2J [31my'],
  ['nor what C1 has for them', 'x\u009b2Jy', 'x 2Jy'],
  ['nor a title of the window', 'x\u001b]0;root\u0007y', 'x ]0;root y'],
  ['nor a line that is written over', 'failed\rready', 'failed ready'],
  ['nor text that reads the other way', 'a\u202eb\u2066c', 'a b c'],
])('%s', (_name, given, expected) => expect(plainText(given)).toBe(expected));

test('in all strings of a document', () => {
  expect(JSON.parse('{"a":["\\u001b[2J",1,{"b":"\\r"}],"c":null}', plainStrings)).toEqual({
    a: [' [2J', 1, { b: ' ' }],
    c: null,
  });
});
