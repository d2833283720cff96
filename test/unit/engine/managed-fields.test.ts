import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { withoutManagedFields } from '../../../operator/engine/managed-fields.ts';

const entry = {
  manager: 'kubelet',
  operation: 'Update',
  fieldsType: 'FieldsV1',
  fieldsV1: {
    'f:status': { 'f:conditions': { 'k:{"type":"Ready]"}': { '.': {}, 'f:type': {} } } },
    'f:metadata': { 'f:finalizers': { 'v:"a\\"]}],["': {} } },
  },
};
const event = (metadata: object, rest: object = {}) =>
  JSON.stringify({ type: 'MODIFIED', object: { kind: 'Pod', metadata, spec: { nodeName: 'a' }, ...rest } });

describe('managedFields', () => {
  test.each([
    ['last', { name: 'a', managedFields: [entry, entry] }, { name: 'a' }],
    ['first', { managedFields: [entry], name: 'a' }, { name: 'a' }],
    ['in the middle', { labels: { a: 'b' }, managedFields: [entry], name: 'a' }, { labels: { a: 'b' }, name: 'a' }],
    ['alone', { managedFields: [entry] }, {}],
    ['empty', { name: 'a', managedFields: [] }, { name: 'a' }],
    ['with lists in it', { name: 'a', managedFields: [[[]], { x: [1, [2]] }] }, { name: 'a' }],
  ])('are left out where they are %s', (_, metadata, left) => {
    expect(withoutManagedFields(event(metadata))).toBe(event(left));
  });

  test.each([
    ['there are none', event({ name: 'a', labels: { managedFields: 'x' } })],
    ['they are the words of somebody', event({ name: 'a', annotations: { note: '"managedFields":[1]' } })],
    ['a key ends like that', '{"a\\"managedFields":[1]}'],
    ['they are not a list', event({ name: 'a', managedFields: { a: 1 } })],
    ['they do not end', event({ name: 'a', managedFields: [entry] }).slice(0, 150)],
    ['they are written for people', JSON.stringify({ metadata: { managedFields: [entry] } }, null, 2)],
  ])('nothing is left out where %s', (_, json) => {
    expect(withoutManagedFields(json)).toBe(json);
  });

  test('whatever is in them and beside them, the rest is what it was', () => {
    const metadata = fc.dictionary(
      fc.string().filter((key) => key !== 'managedFields' && key !== '__proto__'),
      fc.string(),
    );
    fc.assert(
      fc.property(metadata, metadata, fc.array(fc.jsonValue()), (front, behind, fields) => {
        const left = { ...front, ...behind };
        const json = JSON.stringify({ object: { metadata: { ...front, managedFields: fields, ...behind } } });
        expect(JSON.parse(withoutManagedFields(json))).toEqual({ object: { metadata: left } });
      }),
      { numRuns: 500 },
    );
  });
});
