// A transcript as text, SRT and JSON, the same that `asrkit decode --format` writes. `segments` are lists of words.

const SUBTITLE_SECONDS = 7;
const SUBTITLE_CHARACTERS = 42;

const joined = (words) => words.map((word) => word.text).join(" ");

export function text({ segments }) {
  return segments.map((words) => joined(words) + "\n").join("");
}

export function json({ name, duration, segments }) {
  const words = segments.flat().map(({ text, start, end, confidence }) =>
    confidence === null ? { text, start, end } : { text, start, end, confidence });
  return JSON.stringify({ utterance: name, duration, text: joined(words), words }, null, 2) + "\n";
}

export function srt({ segments }) {
  return subtitles(segments.flat()).map((line, i) => {
    const end = Math.min(line.at(-1).end, line[0].start + SUBTITLE_SECONDS);
    return `${i + 1}\n${time(line[0].start)} --> ${time(end)}\n${joined(line)}\n`;
  }).join("\n");
}

/** Words in lines of at most SUBTITLE_CHARACTERS and SUBTITLE_SECONDS, a word beyond either alone. */
function subtitles(words) {
  const lines = [];
  for (const word of words) {
    const line = lines.at(-1);
    const fits = line && joined([...line, word]).length <= SUBTITLE_CHARACTERS
      && word.end - line[0].start <= SUBTITLE_SECONDS;
    if (fits) line.push(word);
    else lines.push([word]);
  }
  return lines;
}

function time(seconds) {
  const milliseconds = Math.round(1000 * seconds);
  const part = (unit, most, digits) => String(Math.floor(milliseconds / unit) % most).padStart(digits, "0");
  return `${part(3600000, Infinity, 2)}:${part(60000, 60, 2)}:${part(1000, 60, 2)},${part(1, 1000, 3)}`;
}
