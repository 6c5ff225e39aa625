"""The file to upload: what it must look like, how it is written, and whether one is valid.

What other rooms need of it; each part has a module of its own: what a submission must hold (expected.py), what its rows
hold for the masks of an image (texts.py), writing (write_file.py, mask_images.py), and looking for faults (examine.py).
"""

from pipeline.encode.examine import examine as examine
from pipeline.encode.examine import faults_of as faults_of
from pipeline.encode.examine import file_note as file_note
from pipeline.encode.expected import Expected as Expected
from pipeline.encode.expected import Key as Key
from pipeline.encode.expected import Texts as Texts
from pipeline.encode.expected import expected as expected
from pipeline.encode.expected import expected_by_name as expected_by_name
from pipeline.encode.expected import expected_of as expected_of
from pipeline.encode.expected import format_of as format_of
from pipeline.encode.expected import usual_class as usual_class
from pipeline.encode.texts import Scores as Scores
from pipeline.encode.texts import cells_of as cells_of
from pipeline.encode.texts import instances_of as instances_of
from pipeline.encode.texts import scores_of as scores_of
from pipeline.encode.texts import texts_of as texts_of
from pipeline.encode.write_file import write as write
from pipeline.encode.write_file import write_constant as write_constant
