from __future__ import annotations

import json
import re

from nnssl.evaluation.api import evaluate
from nnssl.evaluation.tables import results_table
from tests.evaluation.folders_for_tests import LABELS, label_array, write_folders, write_labels


def rows(text):
    """Return the table's cells by the name of the row."""
    table = text.split("\n\n")[0].splitlines()
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in table)}


def test_every_structure_and_the_foreground_mean_have_a_row(tmp_path):
    references, predictions = write_folders(tmp_path)
    write_labels(predictions / "case_0.nii.gz", label_array(0, values=(1,)))
    result = evaluate(references, predictions, nsd_tolerance_mm=2.0)
    text = results_table(result)
    cells = rows(text)
    assert " | ".join(cells["structure"]) == (
        "Dice ± sd | Jaccard | HD95 mm | ASSD mm | NSD 2 mm | cases | missed | spurious"
    )
    mean, sd = result.mean[2], result.sd[2]
    assert cells["rim"] == [
        f"{mean['Dice']:.3f} ± {sd['Dice']:.3f}",
        f"{mean['IoU']:.3f}",
        f"{mean['hd95_mm']:.2f}",
        f"{mean['assd_mm']:.2f}",
        f"{mean['nsd']:.3f}",
        "4",
        "1",
        "0",
    ]
    assert cells["foreground mean"][1] == f"{result.foreground_mean['IoU']:.3f}"
    assert cells["foreground mean"][-3:] == ["4", "1", "0"]
    assert "missed (1): case_0 rim\n" in text
    assert "spurious (" not in text


def test_lines_are_aligned_and_fit_a_terminal(tmp_path):
    references, predictions = write_folders(tmp_path)
    text = results_table(evaluate(references, predictions))
    table = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in table}) == 1
    assert max(map(len, text.splitlines())) <= 120


def test_absent_structures_and_single_cases_show_no_number(tmp_path):
    references, predictions = write_folders(tmp_path, cases=1, labels={**LABELS, "absent": 3})
    cells = rows(results_table(evaluate(references, predictions)))
    assert cells["absent"] == ["–"] * 5 + ["0"] * 3
    assert "±" not in cells["core"][0]


def test_the_paper_metrics_add_their_columns_and_says_what_they_are(tmp_path):
    references, predictions = write_folders(tmp_path)
    result = evaluate(references, predictions, metrics="paper")
    text = results_table(result)
    cells = rows(text)
    assert cells["structure"][5:7] == ["HD95 vox", "ASD vox"]
    assert cells["core"][5] == f"{result.mean[1]['hd95_vox_pooled']:.2f}"
    assert cells["core"][6] == f"{result.mean[1]['asd_vox']:.2f}"
    assert "medpy" in text
    assert "medpy" not in results_table(evaluate(references, predictions))


def test_cases_that_were_left_out_are_listed(tmp_path):
    references, predictions = write_folders(tmp_path, cases=14)
    for number in range(12):
        (predictions / f"case_{number}.nii.gz").unlink()
    (references / "case_13.nii.gz").unlink()
    text = results_table(evaluate(references, predictions, chill=True))
    assert re.search(r"^references without a prediction, left out \(12\): case_0, .* and 7 more$", text, re.MULTILINE)
    assert "predictions without a reference, left out (1): case_13\n" in text


def test_a_table_of_each_domain_follows(tmp_path):
    references, predictions = write_folders(tmp_path)
    description = predictions / "dataset.json"
    content = json.loads(description.read_text())
    content["cases"] = {f"case_{k}": {"domain": "AB"[k % 2]} for k in range(4)}
    description.write_text(json.dumps(content))
    result = evaluate(references, predictions)
    text = results_table(result)
    blocks = {block.splitlines()[0]: block for block in text.split("\n\n")[1:] if block.startswith("domain ")}
    assert list(blocks) == ["domain A", "domain B"]
    for name, block in blocks.items():
        cells = rows(block.partition("\n")[2])
        mean = result.domains[name[-1]].foreground_mean
        assert cells["foreground mean"][1] == f"{mean['IoU']:.3f}"
        assert cells["foreground mean"][-3] == "2"
    assert json.loads(result.summary_file.read_text())["domains"]["A"]["num_cases"] == 2
