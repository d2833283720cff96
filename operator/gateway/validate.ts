/** Bodies against the schemas of the protocol. Every field that is wrong is named, with what was given. */
import { Refusal } from '../core/allocation/refusal.ts';

/** As much of a Zod schema as is used: the gateway needs none of the package itself. */
interface Schema<T> {
  safeParse(
    value: unknown,
  ):
    | { success: true; data: T }
    | { success: false; error: { issues: readonly { path: readonly PropertyKey[]; message: string }[] } };
}

function valueAt(body: unknown, path: readonly PropertyKey[]): unknown {
  let value = body;
  for (const key of path) {
    if (typeof value !== 'object' || value === null) return undefined;
    value = (value as Record<PropertyKey, unknown>)[key];
  }
  return value;
}

export function validated<T>(schema: Schema<T>, body: unknown): T {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const errors = result.error.issues.slice(0, 32).map(({ path, message }) => {
    const given = valueAt(body, path);
    const shown = ['string', 'number', 'boolean'].includes(typeof given) ? String(given).slice(0, 80) : undefined;
    return {
      field: path.map(String).join('.').slice(0, 256) || '(body)',
      ...(shown === undefined ? {} : { given: shown }),
      message: message.slice(0, 512),
    };
  });
  const [first] = errors;
  throw new Refusal(400, `${first?.field}: ${first?.message}`, { errors });
}
