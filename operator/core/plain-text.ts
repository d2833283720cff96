/**
 * Text of somebody who is not trusted, for people to read: characters that steer a terminal, or turn the direction of what is
 * read, become spaces. kubectl shows messages as they are, so what is stored must be harmless. Tabs and ends of lines stay.
 */

// C0 but tab and line feed, DEL, C1; then the marks of direction of Unicode (CVE-2021-42574), and its separators of lines.
const steering =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]/g;

export const plainText = (text: string): string => text.replace(steering, ' ');

/** For JSON.parse. */
export const plainStrings = (_key: string, value: unknown): unknown =>
  typeof value === 'string' ? plainText(value) : value;
