/** No field of a pod is forgotten: the table by which pods are translated, held against a real API server's own schema. */
import { beforeAll, describe, expect, test } from 'vitest';
import { tablesWithin } from '../../operator/core/node/field-table.ts';
import { podSpecTable } from '../../operator/core/node/pod-fields.ts';
import { planes } from '../support/clusters.ts';

interface Schema {
  $ref?: string;
  allOf?: { $ref?: string }[];
  items?: Schema;
  properties?: Record<string, Schema>;
  additionalProperties?: Schema | boolean;
}

const prefix = 'io.k8s.api.core.v1.';
const tables = tablesWithin(podSpecTable);
let schemas: Record<string, Schema>;

/** The type in core/v1 that a field holds, one or many of it; undefined for plain values. */
function typeOf(field: Schema): string | undefined {
  const ref = field.$ref ?? field.allOf?.[0]?.$ref ?? field.items?.$ref ?? field.items?.allOf?.[0]?.$ref;
  const name = ref?.split('/').at(-1);
  return name?.startsWith(prefix) && schemas[name]?.properties ? name.slice(prefix.length) : undefined;
}

beforeAll(async () => {
  const { consumer } = await planes();
  const { text } = await consumer.api.request('GET', '/openapi/v3/api/v1');
  schemas = (JSON.parse(text) as { components: { schemas: Record<string, Schema> } }).components.schemas;
});

describe('the fields of', () => {
  test.each([...tables.keys()])('%s are all settled', (type) => {
    const schema = schemas[prefix + type];
    expect(schema, `Kubernetes has no ${type}`).toBeDefined();
    const settled = Object.keys(tables.get(type)!.fields).filter((field) => field !== 'workloadRef');
    expect(settled.sort()).toEqual(Object.keys(schema!.properties ?? {}).sort());
  });

  test('whatever is sent are settled down to the last one: nothing with fields of its own is sent unread', () => {
    for (const [type, { fields }] of tables) {
      for (const [field, { fate, inside, isList }] of Object.entries(fields)) {
        const property = schemas[prefix + type]?.properties?.[field];
        if (!property || fate === 'left behind' || fate === 'refused') continue;
        // Kubernetes has made a claim of the template by now: nothing of it is sent.
        if (`${type}.${field}` === 'Volume.ephemeral') continue;
        const wanted = typeOf(property);
        expect(inside?.().type, `${type}.${field}`).toBe(wanted);
        if (wanted !== undefined)
          expect(isList === true, `${type}.${field} is a list`).toBe(property.items !== undefined);
      }
    }
  });

  test('an earlier Kubernetes are settled as well', () => {
    // Named in 1.35, and in no later one.
    expect(podSpecTable.fields.workloadRef?.fate).toBe('left behind');
    expect(schemas[`${prefix}PodSpec`]?.properties).not.toHaveProperty('workloadRef');
  });
});
