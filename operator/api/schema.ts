/**
 * Pieces that all kinds are made of. One Zod schema a kind gives the CRD, the TypeScript type, the HTTP validation and
 * the reference; so descriptions here are the manual: unit, default, what happens at the edge.
 *
 * CEL rules and printer columns ride along as metadata (`x-kubernetes-…`), see `crd.ts`.
 */
import { z } from 'zod';

export interface CelRule {
  readonly rule: string;
  readonly message: string;
}

/** Attaches rules that the API server checks (CEL). `self` is the value; transition rules use `oldSelf`. */
export const cel = (...rules: readonly CelRule[]): Record<string, unknown> => ({ 'x-kubernetes-validations': rules });

export const moneyPattern = /^(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?$/;

/** An amount of money in whole tokens, as a decimal string, e.g. "0.34". Quoted in YAML: a bare 0.34 is a number and refused. */
export const money = (description: string) =>
  z.string().max(16).regex(moneyPattern).describe(`${description} Decimal string with at most 6 places, e.g. "0.34".`);

/** Base units of a token, as an integer string. */
export const baseUnits = (description: string) =>
  z
    .string()
    .max(39)
    .regex(/^[0-9]{1,39}$/)
    .describe(`${description} Integer string, base units of the token.`);

export const address = (description: string) =>
  z
    .string()
    .max(42)
    .regex(/^0x[0-9a-fA-F]{40}$/)
    .describe(description);

export const hex32 = (description: string) =>
  z
    .string()
    .max(66)
    .regex(/^0x[0-9a-fA-F]{64}$/)
    .describe(description);

/** Names of Services and namespaces. */
export const dnsLabel = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;

export const seconds = (min: number, max: number) => z.int32().min(min).max(max);

/** A Kubernetes quantity such as 4, 500m or 16Gi. */
export const quantity = z.union([z.int32(), z.string().max(32)]).meta({ 'x-kubernetes-int-or-string': true });

export const time = (description: string) => z.string().max(40).describe(`${description} RFC 3339, UTC.`);

export const condition = z.object({
  type: z.string().max(64),
  status: z.enum(['True', 'False', 'Unknown']),
  observedGeneration: z.int().min(0).optional(),
  lastTransitionTime: z.string().max(40),
  reason: z.string().max(128),
  message: z.string().max(2048),
});

/** One fact about an object, as metav1.Condition has it. */
export type Condition = z.infer<typeof condition>;

export const conditions = z
  .array(condition)
  .max(16)
  .optional()
  .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['type'] });

/** The parts of ObjectMeta that we read or write. The API server owns the rest. */
export interface ObjectMeta {
  name: string;
  namespace?: string;
  uid?: string;
  generation?: number;
  resourceVersion?: string;
  creationTimestamp?: string;
  deletionTimestamp?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  finalizers?: string[];
  ownerReferences?: { apiVersion: string; kind: string; name: string; uid: string; controller?: boolean }[];
}

export interface Kind<Spec, Status> {
  apiVersion: string;
  kind: string;
  metadata: ObjectMeta;
  spec: Spec;
  status?: Status;
}

/** What the CRD generator needs to know of a kind. */
export interface KindDefinition {
  readonly kind: string;
  readonly plural: string;
  readonly scope: 'Namespaced' | 'Cluster';
  readonly shortNames: readonly string[];
  readonly description: string;
  readonly spec: z.ZodType;
  readonly status: z.ZodType;
  readonly selectableFields?: readonly string[];
  readonly columns: readonly {
    readonly name: string;
    readonly type: 'string' | 'integer' | 'date';
    readonly path: string;
    readonly priority?: number;
    readonly description?: string;
  }[];
}
