use std::fs;
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use safetensors::SafeTensors;
use tempfile::TempDir;

use super::decode::decode;
use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/images")
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(fixtures().join("files").join(name)).expect("a fixture")
}

fn processor(name: &str) -> Processor {
    let path = fixtures().join("processors").join(format!("{name}.json"));
    Processor::read(&path, None).expect("a processor")
}

/// The files of the goldens, in their order.
fn files() -> Vec<PathBuf> {
    crate::file::entries(&fixtures().join("files")).expect("files")
}

const PROCESSORS: [&str; 9] = [
    "vit", "oblong", "lanczos", "box", "hamming", "nearest", "deit", "clip", "cropped",
];

/// Pixels are Pillow's own, but for JPEGs, whose decoders round each in their way.
#[test]
fn pixels_and_values_are_those_of_transformers() {
    let golden = fs::read(fixtures().join("golden.safetensors")).expect("goldens");
    let golden = SafeTensors::deserialize(&golden).expect("goldens");
    for name in PROCESSORS {
        let processor = processor(name);
        let pixels = golden.tensor(&format!("{name}.pixels")).expect("pixels");
        let wanted = pixels.data().chunks_exact(processor.values());
        assert_eq!(pixels.shape()[2..], processor.size(), "{name}");
        let (mut differ, mut most, mut all) = (0, 0, 0);
        for (file, wanted) in files().iter().zip(wanted) {
            let mut found = vec![7; processor.values()];
            let image = decode(&fs::read(file).expect("a file")).expect("an image");
            processor.fit(image, &mut found).expect("it fits");
            if file.extension().is_none_or(|extension| extension != "jpg") {
                // Of a palette with a transparent colour, Transformers' CLIP alone blends that colour with white.
                let blended = name == "clip" && file.ends_with("palette-transparent.png");
                assert!(found == wanted || blended, "{name}: {}", file.display());
                continue;
            }
            let pairs = found.iter().zip(wanted);
            let off: Vec<u8> = pairs.map(|(a, b)| a.abs_diff(*b)).collect();
            differ += off.iter().filter(|off| **off > 0).count();
            most = most.max(off.iter().copied().max().unwrap_or(0));
            all += off.len();
        }
        assert!(
            most <= 2 && differ * 5 < all,
            "{name}: {differ} of {all} differ, by {most}"
        );

        let values = golden.tensor(&format!("{name}.values")).expect("values");
        let wanted = values.data().as_chunks::<4>().0.iter();
        let wanted: Vec<f32> = wanted.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let mut found = vec![0.0; wanted.len()];
        processor.normalised(&pixels.data()[..wanted.len()], &mut found);
        assert_eq!(found, wanted, "{name}");
    }
}

fn written(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("preprocessor_config.json");
    fs::write(&path, text).expect("written");
    (folder, path)
}

fn read_text(text: &str, model_type: Option<&str>) -> Result<Processor> {
    let (_folder, path) = written(text);
    Processor::read(&path, model_type)
}

#[test]
fn a_processor_has_the_defaults_of_its_class() {
    let read = |text: &str| read_text(text, None).expect("a processor");
    let vit = read(r#"{"image_processor_type": "ViTImageProcessor"}"#);
    assert_eq!(vit.size(), [224, 224]);
    // The names of before, of other implementations, and none.
    for text in [
        r#"{"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "processor_class": "X"}"#,
        r#"{"image_processor_type": "ViTImageProcessorFast", "do_pad": false, "size": [224, 224], "crop_size": null}"#,
        r#"{"image_processor_type": "ViTImageProcessorPil", "image_mean": 0.5, "do_convert_rgb": true}"#,
    ] {
        assert_eq!(read(text), vit, "{text}");
    }
    assert_eq!(read_text("{}", Some("vit")).expect("a processor"), vit);
    assert_eq!(
        read_text("{}", Some("deit")).expect("a processor").size(),
        [224, 224]
    );
    let clip = read_text("{}", Some("clip")).expect("a processor");
    let same = r#"{"image_processor_type": "CLIPImageProcessor", "size": 224, "crop_size": 224, "resample": 3}"#;
    assert_eq!(read(same), clip);

    // What they are known by is that of what they do.
    assert_eq!(
        vit.identity(),
        read(r#"{"image_processor_type": "ViTImageProcessor", "do_resize": true}"#).identity()
    );
    let others = PROCESSORS.map(|name| processor(name).identity());
    let distinct: std::collections::HashSet<_> = others
        .iter()
        .chain([&vit.identity(), &clip.identity()])
        .cloned()
        .collect();
    assert_eq!(distinct.len(), PROCESSORS.len() + 2);
}

#[test]
fn keys_that_are_not_followed_are_refused_by_name() {
    let vit = r#""image_processor_type": "ViTImageProcessor""#;
    for (keys, said) in [
        (r#""do_pad": true"#, "do_pad is true"),
        (
            r#""do_flip_channel_order": true"#,
            "do_flip_channel_order is true",
        ),
        (
            r#""auto_map": {"AutoImageProcessor": "a.B"}"#,
            "auto_map is {",
        ),
        (
            r#""data_format": "channels_last""#,
            "data_format is \"channels_last\"",
        ),
        (r#""resample": 6"#, "resample is 6"),
        (r#""resample": "bicubic""#, "resample is \"bicubic\""),
        (r#""do_resize": 1"#, "do_resize is 1"),
        (r#""do_resize": false"#, "do_resize is false"),
        (r#""do_center_crop": true"#, "do_center_crop is true"),
        (
            r#""do_center_crop": true, "crop_size": {"shortest_edge": 9}"#,
            "crop_size is {",
        ),
        (
            r#""size": {"shortest_edge": 224}"#,
            "size is {\"shortest_edge\":224}",
        ),
        (
            r#""size": {"shortest_edge": 224, "longest_edge": 300}, "do_center_crop": true, "crop_size": 9"#,
            "size is {",
        ),
        (r#""size": 0"#, "size is 0"),
        (r#""size": {"height": 9, "width": 100000}"#, "size is {"),
        (r#""size": -1"#, "size is -1"),
        (r#""image_mean": [0.5]"#, "image_mean is [0.5]"),
        (r#""image_std": [0.5, 0, 0.5]"#, "image_std is [0.5,0,0.5]"),
        (r#""image_std": 0"#, "image_std is 0"),
        (r#""image_mean": 1e300"#, "image_mean is 1e+300"),
        (r#""rescale_factor": 0"#, "rescale_factor is 0"),
        (r#""rescale_factor": 1e300"#, "rescale_factor is 1000"),
    ] {
        let error = read_text(&format!("{{{vit}, {keys}}}"), None).expect_err(keys);
        let found = error.to_string();
        assert!(
            found.contains("preprocessor_config.json: ") && found.contains(said),
            "{keys}: {found}"
        );
        assert_eq!(error.exit_code(), 2);
    }
    for (text, said) in [
        ("{}", "image_processor_type is missing"),
        (
            r#"{"image_processor_type": "ConvNextImageProcessor"}"#,
            "is \"ConvNextImageProcessor\"",
        ),
        (
            r#"{"image_processor_type": 3}"#,
            "image_processor_type is 3",
        ),
        ("[]", "not an object"),
        ("{", "EOF"),
    ] {
        let found = read_text(text, Some("swin")).expect_err(text).to_string();
        assert!(found.contains(said), "{text}: {found}");
    }
    let missing = Processor::read(Path::new("nowhere.json"), None).expect_err("none");
    assert!(missing.to_string().contains("cannot read nowhere.json"));
}

#[test]
fn what_is_no_image_is_refused() {
    let fault = |bytes: &[u8]| decode(bytes).err().unwrap_or_default();
    assert_eq!(fault(b""), "it is not a PNG, JPEG, BMP or WebP image");
    assert_eq!(
        fault(b"class,file\n0,a.png\n"),
        "it is not a PNG, JPEG, BMP or WebP image"
    );
    assert!(fault(b"GIF89a\x01\x00\x01\x00").starts_with("gif is not read"));

    // A header that promises more pixels than are read.
    let mut bomb = fixture("plain.bmp");
    bomb[18..22].copy_from_slice(&20_000_i32.to_le_bytes());
    bomb[22..26].copy_from_slice(&20_000_i32.to_le_bytes());
    assert!(
        fault(&bomb).contains("20000 × 20000 pixels"),
        "{}",
        fault(&bomb)
    );
    bomb[18..22].copy_from_slice(&2_000_000_i32.to_le_bytes());
    assert!(fault(&bomb).contains("limit"), "{}", fault(&bomb));

    // Pillow would make white of it.
    let mut grey = std::io::Cursor::new(Vec::new());
    let image = ::image::ImageBuffer::from_pixel(2, 2, ::image::Luma([700_u16]));
    let image = ::image::DynamicImage::ImageLuma16(image);
    image
        .write_to(&mut grey, ::image::ImageFormat::Png)
        .expect("written");
    assert!(fault(grey.get_ref()).contains("grey with 16 bits"));
}

#[test]
fn damaged_images_are_refused_or_read_but_nothing_breaks() {
    for file in files() {
        let whole = fs::read(&file).expect("a file");
        let jpeg = file.extension().is_some_and(|extension| extension == "jpg");
        for end in (0..whole.len()).step_by(7) {
            let cut = decode(&whole[..end]);
            assert!(!jpeg || cut.is_err(), "{} cut at {end}", file.display());
        }
        for at in (0..whole.len()).step_by(5) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xA5;
            let _ = decode(&damaged);
        }
    }
}

/// An image that would be resized to more than can be held.
#[test]
fn a_strip_is_not_resized_to_a_sea() {
    let strip = decode::Rgb {
        height: 1,
        width: 60_000,
        pixels: vec![0; 180_000],
    };
    let clip = read_text("{}", Some("clip")).expect("a processor");
    let fault = clip
        .fit(strip, &mut vec![0; clip.values()])
        .expect_err("too many");
    assert!(
        fault.starts_with("60000 × 1 pixels would be resized to 13440000 × 224"),
        "{fault}"
    );
}

/// A folder with these files, each a copy of a fixture or empty.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (path, name) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let content = if name.is_empty() {
            Vec::new()
        } else {
            fixture(name)
        };
        fs::write(path, content).expect("written");
    }
    folder
}

const FILES: [(&str, &str); 8] = [
    ("train/dog/1.png", "plain.png"),
    ("train/dog/2.jpg", "grey.jpg"),
    ("train/dog/3.png", "alpha.png"),
    ("train/cat/b.webp", "lossy.webp"),
    ("train/cat/a.bmp", "plain.bmp"),
    ("train/.DS_Store", ""),
    ("val/dog/x", "grey.png"),
    ("test/1.png", "grey.png"),
];

fn read_dir(dir: &Path, limit: Option<usize>) -> Result<Splits> {
    let processor = processor("vit");
    let reading = Reading {
        columns: Columns::default(),
        processor: &processor,
        limit,
    };
    read(&Sources::of_dir(dir)?, &reading, None)
}

#[test]
fn a_folder_per_class_is_read() {
    let folder = folder(&FILES);
    let splits = read_dir(folder.path(), None).expect("images");
    assert_eq!(splits.classes, ["cat", "dog"]);
    // In turn of each class.
    assert_eq!(splits.train.labels, [0, 1, 0, 1, 1]);
    let places: Vec<String> = (0..5)
        .map(|index| splits.train.places.name(index))
        .collect();
    for (place, end) in places.iter().zip([
        "cat/a.bmp",
        "dog/1.png",
        "cat/b.webp",
        "dog/2.jpg",
        "dog/3.png",
    ]) {
        assert!(Path::new(place).ends_with(end), "{place}");
    }
    let images = &splits.train.images;
    assert_eq!((images.len(), images.values()), (5, 3 * 16 * 16));
    let mut first = vec![0; images.values()];
    let image = decode(&fixture("plain.bmp")).expect("an image");
    processor("vit").fit(image, &mut first).expect("it fits");
    assert_eq!(images.image(0), first);
    let some = splits.train.select(&[3, 0]);
    assert_eq!(
        (some.images.image(1), &some.labels[..], some.places.name(1)),
        (&first[..], &[1, 0][..], places[0].clone())
    );

    let validation = splits.validation.expect("a split");
    assert_eq!(validation.labels, [1]);
    let test = splits.test.expect("a split");
    assert_eq!((test.len(), &test.labels[..]), (1, &[][..]));

    let few = read_dir(folder.path(), Some(2)).expect("images").train;
    assert_eq!((few.len(), &few.labels[..]), (2, &[0, 1][..]));
}

#[test]
fn what_would_not_be_read_of_a_folder_is_refused_by_name() {
    for (more, said) in [
        (
            ("train/cat/bad.png", ""),
            "1 malformed image\n  cat/bad.png: it is not",
        ),
        (
            ("train/metadata.csv", ""),
            "metadata.csv: the file is in no class's folder",
        ),
        (
            ("train/cat/inner/1.png", "grey.png"),
            "cat/inner: a folder in the folder of a class",
        ),
        (
            ("val/emu/1.png", "grey.png"),
            "val/emu: the label \"emu\" is none of the classes cat, dog",
        ),
        (
            ("validation/cat/1.png", "grey.png"),
            "are both the validation split",
        ),
        (
            ("extra/cat/1.png", "grey.png"),
            "extra: the folder is no split",
        ),
        (("train-1.parquet", ""), "are both there"),
        (
            ("test/cat/1.png", "grey.png"),
            "test/1.png: the file is in no class's folder",
        ),
    ] {
        let folder = folder(&[&FILES[..], &[more]].concat());
        let error = read_dir(folder.path(), None).expect_err(said);
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
    let folder = folder(&FILES);
    fs::create_dir(folder.path().join("train/emu")).expect("a folder");
    let error = read_dir(folder.path(), None).expect_err("an empty class");
    assert!(
        error.to_string().contains("emu: the class has no images"),
        "{error}"
    );
    let error = read_dir(&folder.path().join("train"), None).expect_err("no splits");
    assert!(
        error.to_string().contains("neither a folder `train`"),
        "{error}"
    );
    // The folder of the splits in place of that of the classes.
    let given = Sources::own(folder.path(), None, None);
    let processor = processor("vit");
    let reading = Reading {
        columns: Columns::default(),
        processor: &processor,
        limit: None,
    };
    let classes = ["test", "train", "val"].map(str::to_owned);
    let error = read(&given, &reading, Some(&classes)).expect_err("splits");
    assert!(
        error
            .to_string()
            .contains("train/cat: a folder in the folder of a class"),
        "{error}"
    );
    for path in ["nowhere", "nowhere.parquet"] {
        let error = classes_of(&[path.into()], reading.columns).expect_err(path);
        assert!(
            error
                .to_string()
                .contains("neither a folder nor a Parquet file"),
            "{error}"
        );
    }
}

fn read_files(
    files: &[PathBuf],
    part: Part,
    classes: &[&str],
    limit: Option<usize>,
) -> Result<Examples> {
    let processor = processor("vit");
    let reading = Reading {
        columns: Columns::default(),
        processor: &processor,
        limit,
    };
    let classes: Vec<String> = classes.iter().map(|class| (*class).to_owned()).collect();
    read_split(files, part, &reading, &classes)
}

#[test]
fn what_datasets_writes_is_read() {
    let file = fixtures().join("datasets.parquet");
    let classes = classes_of(std::slice::from_ref(&file), Columns::default()).expect("classes");
    assert_eq!(classes, ["zebra", "cat", "emu"]);
    let files = [file.clone(), file];
    let names = ["zebra", "cat", "emu"];
    let examples = read_files(&files, Part::Train, &names, None).expect("images");
    assert_eq!(examples.labels, [2, 0, 2, 2, 0, 2]);
    assert!(examples.places.name(4).ends_with("datasets.parquet, row 2"));
    let mut turned = vec![0; examples.images.values()];
    let image = decode(&fixture("turned-6.jpg")).expect("an image");
    processor("vit").fit(image, &mut turned).expect("it fits");
    assert_eq!(examples.images.image(1), turned);
    // Of other training data, whose classes come in another order.
    let examples =
        read_files(&files[..1], Part::Validation, &["emu", "zebra"], Some(2)).expect("images");
    assert_eq!(examples.labels, [0, 1]);
    let error =
        read_files(&files[..1], Part::Validation, &["cat", "zebra"], None).expect_err("no emu");
    assert!(
        error
            .to_string()
            .contains("2 malformed rows\n  row 1: the label \"emu\" is none"),
        "{error}"
    );
}

#[test]
fn damaged_parquet_is_refused_or_read_but_nothing_breaks() {
    let whole = fs::read(fixtures().join("datasets.parquet")).expect("a fixture");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.parquet");
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("written");
        let files = std::slice::from_ref(&path);
        let classes = classes_of(files, Columns::default());
        classes.and(read_files(
            files,
            Part::Train,
            &["zebra", "cat", "emu"],
            None,
        ))
    };
    for end in (0..whole.len()).step_by(211) {
        assert_eq!(read(&whole[..end]).expect_err("cut short").exit_code(), 2);
    }
    // The end holds the lengths and places of everything else.
    for at in (0..whole.len() - 2000)
        .step_by(499)
        .chain((whole.len() - 2000..whole.len()).step_by(3))
    {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xA5;
        if let Err(error) = read(&damaged) {
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }
}

/// A Parquet file of images and labels, of plain bytes and numbers.
fn plain(rows: &[(Option<&[u8]>, Option<i64>)]) -> (TempDir, PathBuf) {
    let schema = "message rows { OPTIONAL BYTE_ARRAY image; OPTIONAL INT64 label; }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plain.parquet");
    let file = fs::File::create(&path).expect("a file");
    let properties = Arc::new(WriterProperties::default());
    let mut writer = SerializedFileWriter::new(file, schema, properties).expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    let images: Vec<ByteArray> = rows
        .iter()
        .filter_map(|row| row.0)
        .map(|bytes| bytes.to_vec().into())
        .collect();
    let there: Vec<i16> = rows.iter().map(|row| i16::from(row.0.is_some())).collect();
    let mut column = group.next_column().expect("no error").expect("a column");
    column
        .typed::<ByteArrayType>()
        .write_batch(&images, Some(&there), None)
        .expect("written");
    column.close().expect("closed");
    let labels: Vec<i64> = rows.iter().filter_map(|row| row.1).collect();
    let there: Vec<i16> = rows.iter().map(|row| i16::from(row.1.is_some())).collect();
    let mut column = group.next_column().expect("no error").expect("a column");
    column
        .typed::<Int64Type>()
        .write_batch(&labels, Some(&there), None)
        .expect("written");
    column.close().expect("closed");
    group.close().expect("closed");
    writer.close().expect("closed");
    (folder, path)
}

#[test]
fn plain_columns_are_read_and_malformed_rows_are_named() {
    let (grey, bad) = (fixture("grey.png"), b"bad".to_vec());
    let (_folder, path) = plain(&[(Some(&grey), Some(10)), (Some(&grey), Some(9))]);
    let files = std::slice::from_ref(&path);
    let classes = classes_of(files, Columns::default()).expect("classes");
    assert_eq!(classes, ["9", "10"]);
    assert_eq!(
        read_files(files, Part::Train, &["9", "10"], None)
            .expect("images")
            .labels,
        [1, 0]
    );
    // Numbers are classes by their number only where no class is named by one.
    let named: Vec<String> = (0..11).map(|class| format!("class {class}")).collect();
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    assert_eq!(
        read_files(files, Part::Train, &named, None)
            .expect("images")
            .labels,
        [10, 9]
    );

    let (_folder, path) = plain(&[
        (Some(&bad), Some(1)),
        (None, Some(1)),
        (Some(&grey), None),
        (Some(&grey), Some(2)),
        (Some(&grey), Some(0)),
    ]);
    let files = std::slice::from_ref(&path);
    let error = read_files(files, Part::Validation, &["a", "b"], None)
        .expect_err("malformed")
        .to_string();
    for said in [
        "plain.parquet: 4 malformed rows",
        "row 1: it is not a PNG",
        "row 2: the image is missing",
        "row 3: the label is missing",
        "row 4: the label \"2\" is none of the classes a, b",
    ] {
        assert!(error.contains(said), "{error}");
    }
    let (_folder, path) = plain(&[(Some(&grey), Some(-1)), (Some(&grey), None)]);
    let files = std::slice::from_ref(&path);
    let test = read_files(files, Part::Test, &["a", "b"], None).expect("images");
    assert_eq!((test.len(), &test.labels[..]), (2, &[][..]));
    let (_folder, path) = plain(&[(Some(&grey), Some(1)), (Some(&grey), None)]);
    let error = read_files(&[path], Part::Test, &["a", "b"], None).expect_err("some");
    assert!(
        error
            .to_string()
            .contains("plain.parquet, row 2 has no label"),
        "{error}"
    );

    let processor = processor("vit");
    let reading = Reading {
        columns: Columns {
            image: "img",
            ..Columns::default()
        },
        processor: &processor,
        limit: None,
    };
    let error = read_split(files, Part::Test, &reading, &[]).expect_err("no column");
    assert!(
        error.to_string().contains("there is no column `img`"),
        "{error}"
    );
}

#[test]
fn the_files_of_published_data_are_found() {
    let folder = folder(&[
        ("README.md", ""),
        ("data/train-00000-of-00002.parquet", ""),
        ("data/train-00001-of-00002.parquet", ""),
        ("data/test-00000-of-00001.parquet", ""),
    ]);
    let data = folder.path().join("data");
    let sources = Sources::of_dir(folder.path()).expect("files");
    assert_eq!(
        sources.train,
        [
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet"
        ]
        .map(|name| data.join(name))
    );
    assert_eq!(sources.validation, [] as [PathBuf; 0]);
    assert_eq!(sources.test, [data.join("test-00000-of-00001.parquet")]);
    fs::remove_file(&sources.train[1]).expect("removed");
    let error = Sources::of_dir(folder.path()).expect_err("one of two");
    assert!(
        error.to_string().contains("the file is one of 2"),
        "{error}"
    );
}
