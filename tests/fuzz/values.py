"""What bad inputs are made of: values of the wrong kind, texts of files, names and numbers."""

VALUES = (None, True, -1, 0, 1e308, 10**30, "", "text", "../../x", [], {}, [[]], {"a": {"b": 1}}, [1, "a"], "9" * 300)


YAML_TEXTS = (
    ("", True), ("# nothing\n", True), ("{}", True), ("- 1\n", True), ("text", True), ("epochs: 010\n", True),
    ("epochs: 1:30\n", True), ("epochs: 1\nepochs: 2\n", True), ("a: &a [*a]\n", True), ("epochs: [1\n", True),
    ("\tepochs: 1\n", True), ("epochs: 1\n---\nepochs: 2\n", True), ("epochs: !!python/object:os.system x\n", True),
    ("epochs: 1\x00\n", True), ("[" * 5000, True), ("epoch: 1\n", True), ("epochs: yes\n", True),
    ("epochs: .nan\n", True),
    ("epochs: .inf\n", True), ("epochs: 1.5\n", True), ("epochs: -1\n", True), ("epochs: 1e99\n", True),
    ("epochs: text\n", True),
    ("extends: none_such\n", True), ("extends: fuzz.yaml\n", True), ("seed: -1\n", True), ("seed: 1.0\n", True),
    ("batch_size: 0\n", True), ("batch_size: 100000000\n", True), ("foundation: 3\n", True),
    ("foundation: [1]\n", True),
    ("foundation: {name: compact, image_size: 33}\n", True), ("foundation: {name: none}\n", True),
    ("foundation: {checkpoint: ~nouser/x.pth}\n", True), ("foundation: {name: compact, channels: [0, 0, 9]}\n", True),
    ("foundation: {name: compact, intensity: [2, 1]}\n", True),
    ("foundation: {name: compact, lora_rank: -1}\n", True),
    ("optimizers: {conventional: {name: sgd, lr: 0}}\n", True),
    ("optimizers: {conventional: {name: lion, lr: 1}}\n", True),
    ("optimizers: {conventional: {momentum: 2}}\n", True), ("augmentation: {blur: [2, 1]}\n", True),
    ("method: {structures: [[9]]}\n", True), ("method: {tau: 7}\n", True), ("method: [1]\n", True),
    ("2024-13-45: 1\n", True), ("? [a]\n: 1\n", True), ("epochs: 2024-01-31\n", True), ("precision: float8\n", True),
)  # fmt: skip
CSV_TEXTS = (
    "", "case\n", "case,domain\n", "case;domain\nA;B\n", "case,domain\nnobody,A\n", "case,domain\n,\n",
    "case,domain\nAtrain001\n",
    "case,domain\nAtrain001,A,B\n", "case,domain\nAtrain001,A\nAtrain001,B\n", "domain,case\nA,Atrain001\n",
    "\x00\x00", "a\rb\rc",
    '"case,domain\n', "case,domain\n" + "x" * 200_000 + ",A\n",
)  # fmt: skip


NUMBERS = ("-1", "0", "1.5", "nan", "inf", "1e99", "9" * 30, "", "two", "0x1", "²")
NAMES = (
    "",
    ".",
    "..",
    "../x",
    "/dev/null",
    "~nouser",
    "no such",
    "x" * 300,
    "a/b",
    "a\nb",
    "ä",
    "-",
    "*",
    "501 502",
    "0",
    "-7",
    "Dataset1_X",
)
VARIABLE_VALUES = (None, "", "OUT/nowhere/at/all", "relative", "~nouser/x", "/dev/null", "/proc", "x" * 5000, "a\nb")


FURTHER = {
    "import": [("--domains", NAMES), ("--annotated", NAMES), ("--labels", NAMES), ("--channels", NAMES)],
    "preprocess": [("-p", NAMES), ("-np", NUMBERS)],
    "split": [
        ("--num-labeled", NUMBERS), ("--labeled-domain", NAMES), ("--folds", NUMBERS), ("--seed", NUMBERS),
        ("--labeled-ids", NAMES), ("--patient-pattern", ("(", "[", "x", "(a)(b)", "")),
    ],
    "train": [("-tr", NAMES), ("-p", NAMES), ("--config", NAMES), ("--set", ("", "=", "a", "epochs", "=1",
    "a=b=c", "epochs.x=1"))],
    "experiment": [("-d", NAMES), ("--seeds", NUMBERS), ("-num_parts", NUMBERS), ("-part_id", NUMBERS),
    ("--set", ("a", "seed=1"))],
    "pretrain": [("--minutes", ("-1", "0", "nan", "inf", "x")), ("--from", NAMES), ("--config", NAMES),
    ("--network", NAMES)],
    "predict": [
        ("-tr", NAMES), ("-p", NAMES), ("-chk", NAMES), ("-f", NUMBERS), ("--model", NAMES), ("-step_size", NUMBERS),
        ("-num_parts", NUMBERS), ("-part_id", NUMBERS), ("--points", NAMES), ("--untrained", NAMES),
        ("--prompt", NAMES),
        ("--image_size", NUMBERS),
    ],
    "rank": [("-tr", NAMES), ("-chk", NAMES), ("-f", NUMBERS), ("--domains", NAMES), ("--pictures", NUMBERS)],
    "export": [("-tr", NAMES), ("-p", NAMES), ("-chk", NAMES), ("-f", NUMBERS)],
    "evaluate": [("--domains", NAMES), ("--annotated", NAMES), ("-np", NUMBERS)],
    "compare": [("--domains", NAMES), ("--baseline", NAMES), ("-i", NAMES), ("--seed", NUMBERS), ("-np", NUMBERS)],
    "generate": [("--num-cases", NUMBERS), ("--num-labeled", NUMBERS), ("--num-test", NUMBERS), ("--seed", NUMBERS)],
    "doctor": [("-d", NAMES)],
}  # fmt: skip
