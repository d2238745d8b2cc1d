// The microphone as blocks of 16-bit samples, a tenth of a second each.

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.begin();
    this.port.onmessage = () => { // asked to end: what is left, then nothing
      this.post(this.block.subarray(0, this.filled));
      this.port.postMessage(null);
    };
  }

  begin() {
    this.block = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
  }

  post(block) {
    this.port.postMessage(block.slice());
    this.begin();
  }

  process([[samples]]) {
    for (const sample of samples ?? []) {
      this.block[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(32768 * sample)));
      if (this.filled === this.block.length) this.post(this.block);
    }
    return true;
  }
}

registerProcessor("capture", Capture);
