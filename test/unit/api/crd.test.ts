/** What every generated CustomResourceDefinition must be; that API servers take them is tested on one. */
import { describe, expect, it } from 'vitest';
import { customResourceDefinition } from '../../../operator/api/crd.ts';
import { kinds } from '../../../operator/api/kinds.ts';
import { gpuModels, modelOfProduct } from '../../../operator/api/models.ts';

type Schema = { [key: string]: unknown; properties?: Record<string, Schema>; items?: Schema };
interface Definition {
  spec: { versions: { schema: { openAPIV3Schema: Schema }; subresources: unknown }[]; names: Record<string, unknown> };
}
const definitions = kinds.map((kind) => [kind.kind, customResourceDefinition(kind) as unknown as Definition] as const);

/** Every schema within, with its path. `default` and `enum` hold data. */
function* schemasIn(schema: Schema, path: string): Generator<[string, Schema]> {
  yield [path, schema];
  for (const [name, property] of Object.entries(schema.properties ?? {})) yield* schemasIn(property, `${path}.${name}`);
  if (schema.items) yield* schemasIn(schema.items, `${path}[]`);
  const additional = schema.additionalProperties as Schema | undefined;
  if (typeof additional === 'object') yield* schemasIn(additional, `${path}{}`);
}

describe.each(definitions)('the definition of %s', (kind, definition) => {
  const { schema, subresources } = definition.spec.versions[0]!;
  const all = [...schemasIn(schema.openAPIV3Schema, kind)];
  const ours = all.filter(([path]) => path.startsWith(`${kind}.spec`) || path.startsWith(`${kind}.status`));

  it('has a status of its own, and a category to get everything by', () => {
    expect(subresources).toEqual({ status: {} });
    expect(definition.spec.names.categories).toEqual(['gpuleasing']);
  });

  it('says no word that a structural schema may not', () => {
    for (const [path, one] of all)
      for (const word of ['$schema', 'propertyNames', '$ref', 'oneOf', 'patternProperties', 'const'])
        expect(Object.keys(one), path).not.toContain(word);
  });

  it('bounds every text, list and map, as the cost of rules needs it', () => {
    for (const [path, one] of ours) {
      const bounded =
        one.type === 'string'
          ? one.maxLength !== undefined || one.enum !== undefined || one.format !== undefined
          : one.type !== 'array' || one.maxItems !== undefined;
      expect(bounded, path).toBe(true);
    }
  });

  it('has a message for every rule', () => {
    for (const [path, one] of all)
      for (const rule of (one['x-kubernetes-validations'] ?? []) as { rule: string; message: string }[])
        expect(rule.message, `${path}: ${rule.rule}`).toMatch(/\w{3,}/);
  });

  it('spells its defaults out where a rule reads them', () => {
    for (const [path, one] of all)
      if (one['x-kubernetes-validations'] && one.type === 'object' && one.default !== undefined)
        expect(Object.keys(one.default as object).length, path).toBeGreaterThan(0);
  });
});

describe('models', () => {
  it('are known by each of their products', () => {
    for (const [model, products] of Object.entries(gpuModels))
      for (const product of products) expect(modelOfProduct(product)).toBe(model);
  });
  it('share no product', () => {
    const products = Object.values(gpuModels).flat() as string[];
    expect(new Set(products).size).toBe(products.length);
  });
  it('are not guessed', () => {
    expect([modelOfProduct(''), modelOfProduct('NVIDIA-B300'), modelOfProduct('rtx4090')]).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
  });
});
