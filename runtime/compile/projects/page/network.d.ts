/** A class of an image and its probability. */
export interface Prediction {
  label: string;
  index: number;
  score: number;
}

/** An ImageData of any size; or RGBA pixels of the network's size; or such pixels in the network's own channels. */
export type Image = Pick<ImageData, "data" | "width" | "height"> | Uint8ClampedArray | Uint8Array;

/** The compiled network: one instance has its own memory, and runs one image at a time. */
export class Network {
  static readonly model: string;
  static readonly classes: readonly string[];
  static readonly height: number;
  static readonly width: number;
  /** Order of the channels: "RGB", "BGR" or "L" (grey). */
  static readonly channels: string;

  /** Loads the network from an address, by default the file beside this module, or from the bytes of that file. */
  static load(source?: string | URL | ArrayBuffer | Uint8Array): Promise<Network>;

  /** Runs the network on int8 values, rows of pixels with the channels last, and returns its output. */
  run(input: Int8Array): $Output;

  /** The output for an image as real numbers, one for each class. */
  predict(image: Image): Float32Array;

  /** The most probable classes of an image, most probable first. */
  classify(image: Image, top?: number): Prediction[];

  /** An image as the network sees it: uint8, after resize and crop, rows of pixels with the channels last. */
  crop(image: Image): Uint8Array | Uint8ClampedArray;

  /** Runs the test image; true if the output has the expected bits, null if the model came without a test image. */
  selfTest(): Promise<boolean | null>;
}
