/**
 * Zod schema → structural OpenAPI schema → CustomResourceDefinition.
 *
 * A CRD's schema must be structural (https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema):
 * no `$schema`, no `propertyNames`, no `additionalProperties: false`; and the bounds that Zod adds for JavaScript's own
 * number range are noise there.
 */
import { z } from 'zod';
import { group, version } from './labels.ts';
import type { KindDefinition } from './schema.ts';

type Json = Record<string, unknown>;

function structural(node: unknown): unknown {
  if (Array.isArray(node)) return node.map(structural);
  if (node === null || typeof node !== 'object') return node;
  const out: Json = {};
  for (const [key, value] of Object.entries(node)) {
    if (key === '$schema' || key === 'propertyNames') continue;
    if (key === 'additionalProperties' && value === false) continue;
    // `default` and `enum` hold data, not schema.
    out[key] = key === 'default' || key === 'enum' || key.startsWith('x-kubernetes') ? value : structural(value);
  }
  if (out['x-kubernetes-int-or-string']) {
    delete out.type;
    out.anyOf = [{ type: 'integer' }, { type: 'string' }];
  } else if (out.type === 'integer') {
    const { minimum, maximum } = out as { minimum?: number; maximum?: number };
    if (minimum === Number.MIN_SAFE_INTEGER || minimum === -2147483648) delete out.minimum;
    if (maximum === Number.MAX_SAFE_INTEGER || maximum === 2147483647) delete out.maximum;
    out.format = maximum !== undefined && maximum <= 2147483647 ? 'int32' : 'int64';
  }
  return out;
}

const openApi = (schema: z.ZodType): Json =>
  structural(z.toJSONSchema(schema, { target: 'openapi-3.0', io: 'input', unrepresentable: 'throw' })) as Json;

/** The CustomResourceDefinition of a kind, ready to be written as YAML. */
export function customResourceDefinition(kind: KindDefinition): Json {
  return {
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: { name: `${kind.plural}.${group}` },
    spec: {
      group,
      names: {
        kind: kind.kind,
        listKind: `${kind.kind}List`,
        plural: kind.plural,
        singular: kind.kind.toLowerCase(),
        shortNames: kind.shortNames,
        // Not `gpulease`: that is a kind's singular name, and kubectl would take it for the category.
        categories: ['gpuleasing'],
      },
      scope: kind.scope,
      versions: [
        {
          name: version,
          served: true,
          storage: true,
          subresources: { status: {} },
          ...(kind.selectableFields
            ? { selectableFields: kind.selectableFields.map((jsonPath) => ({ jsonPath })) }
            : {}),
          additionalPrinterColumns: kind.columns.map(({ name, type, path, priority, description }) => ({
            name,
            type,
            jsonPath: path,
            ...(priority === undefined ? {} : { priority }),
            ...(description === undefined ? {} : { description }),
          })),
          schema: {
            openAPIV3Schema: {
              type: 'object',
              description: kind.description,
              required: ['spec'],
              properties: {
                apiVersion: { type: 'string' },
                kind: { type: 'string' },
                metadata: { type: 'object' },
                spec: openApi(kind.spec),
                status: openApi(kind.status),
              },
            },
          },
        },
      ],
    },
  };
}
