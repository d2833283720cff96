/** Values for a chart that is older than who writes them: without what its schema does not know. */
export interface Schema {
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly additionalProperties?: boolean | Schema;
  readonly items?: Schema;
}

export interface KnownValues {
  readonly values: unknown;
  /** Paths of what was left out, e.g. `gateway.flags.dialOut`. */
  readonly dropped: readonly string[];
}

/** Leaves out what the schema would refuse because it has no such name. Values that it refuses for what they say stay. */
export function knownValues(schema: Schema, values: unknown): KnownValues {
  const dropped: string[] = [];
  const keep = (known: Schema | undefined, value: unknown, path: string): unknown => {
    if (Array.isArray(value)) return value.map((one, at) => keep(known?.items, one, `${path}[${at}]`));
    if (typeof value !== 'object' || value === null) return value;
    const out: Record<string, unknown> = {};
    for (const [name, inner] of Object.entries(value)) {
      const at = path ? `${path}.${name}` : name;
      const own = Object.hasOwn(known?.properties ?? {}, name) ? known!.properties![name] : undefined;
      const others = known?.additionalProperties;
      if (!own && others === false) dropped.push(at);
      else out[name] = keep(own ?? (typeof others === 'object' ? others : undefined), inner, at);
    }
    return out;
  };
  return { values: keep(schema, values, ''), dropped };
}
