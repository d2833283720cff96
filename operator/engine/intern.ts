/**
 * Equal strings, kept once. A thousand pods of one Deployment differ in a handful of values; parsed one by one, each brings its own
 * copy of all others, which is half of what an informer holds.
 */
/** Longer ones are seldom equal, and looking them up costs more. */
const longestKept = 256;
/** What is of one object only passes through: when so many are known, they are forgotten, and begin anew. */
const mostKnown = 20_000;

let known = new Map<string, string>();

function intern(text: string): string {
  if (text.length > longestKept) return text;
  const first = known.get(text);
  if (first !== undefined) return first;
  if (known.size >= mostKnown) known = new Map();
  known.set(text, text);
  return text;
}

/** Strings of `object`, at any depth, become those that are held already: a change that nobody can see. */
export function shareStrings<T extends object>(object: T): T {
  const fields = object as Record<string, unknown>;
  for (const key in fields) {
    const value = fields[key];
    if (typeof value === 'string') fields[key] = intern(value);
    else if (value !== null && typeof value === 'object') shareStrings(value);
  }
  return object;
}
